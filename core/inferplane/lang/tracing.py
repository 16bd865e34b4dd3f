"""The constant beginning of a program: what it appends before it looks at an argument or the model.

The function is called with placeholders. Any use of one, other than adding it to a text, ends the
trace, and so do a call of the model, a fork, and any error.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NoReturn, Self

from inferplane.lang.expressions import (
    Gen,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Unknown,
    parts_of,
)
from inferplane.lang.transcript import Transcript


class _Stop(BaseException):
    """Not an Exception: programs may catch those."""


def _stop(*_: object, **__: object) -> NoReturn:
    raise _Stop


class Placeholder(Unknown):
    """An argument. Adding it to a text is all that can be done with it."""

    __slots__ = ()


for _name in (
    "getattr format iter len bool str repr eq ne hash contains getitem call int float index bytes"
    " lt gt le ge sub mul mod truediv floordiv neg rsub rmul rmod rtruediv fspath"
).split():
    setattr(Placeholder, f"__{_name}__", _stop)


class _Trace:
    """Stands in for a ProgramState."""

    def __init__(self) -> None:
        self.transcript = Transcript()

    def __iadd__(self, value: Any) -> Self:
        for part in parts_of(value):
            if isinstance(part, Gen | Select | Unknown):
                raise _Stop
            if not isinstance(part, ScopeBegin | ScopeEnd):
                self.transcript.add(part)
        return self

    @contextmanager
    def _between(self, role: str) -> Any:
        self.transcript.add(RoleBegin(role))
        yield
        self.transcript.add(RoleEnd(role))

    def system(self) -> AbstractContextManager[None]:
        return self._between("system")

    def user(self) -> AbstractContextManager[None]:
        return self._between("user")

    def assistant(self) -> AbstractContextManager[None]:
        return self._between("assistant")

    @contextmanager
    def var_scope(self, name: str) -> Any:
        yield

    def __getattr__(self, name: str) -> Any:
        raise _Stop

    def __getitem__(self, name: str) -> Any:
        raise _Stop

    def __setitem__(self, name: str, value: Any) -> None:
        raise _Stop

    def __contains__(self, name: str) -> bool:
        raise _Stop


def constant_prefix(
    function: Callable[..., Any], names: Iterable[str], known: dict[str, Any]
) -> Transcript:
    """What `function(s, ...)` always begins with. `names` are its arguments without a default,
    `known` the values of those that are the same in every run."""
    trace = _Trace()
    arguments = {name: Placeholder() for name in names} | known
    with suppress(_Stop, Exception):
        function(trace, **arguments)
    return trace.transcript
