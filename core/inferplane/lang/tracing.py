"""The constant beginning of a program: what it appends before it looks at an argument or the model.

The function is called with placeholders. Any use of one, other than adding it to a text, ends the
trace, and so do a call of the model, a fork, and any error.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NoReturn, Self

from inferplane.lang.expressions import (
    Expression,
    Gen,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    parts_of,
)
from inferplane.lang.transcript import Transcript


class _Stop(BaseException):
    """Not an Exception: programs may catch those."""


def _stop(*_: object, **__: object) -> NoReturn:
    raise _Stop


class Placeholder(Expression):
    """An argument that is not known yet. Adding it to a text keeps the text before it."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        return _Cut(())

    def __radd__(self, other: Any) -> Any:
        return _Cut(parts_of(other))


for _name in (
    "getattr format iter len bool str repr eq ne hash contains getitem call int float index lt gt le"
    " ge sub mul mod truediv floordiv neg rsub rmul rmod rtruediv fspath bytes"
).split():
    setattr(Placeholder, f"__{_name}__", _stop)


class _Cut(Expression):
    """Known parts, and then something unknown."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts = tuple(parts)

    def __add__(self, other: Any) -> Any:
        return self

    def __radd__(self, other: Any) -> Any:
        return _Cut((*parts_of(other), *self.parts))


class _Trace:
    """Stands in for a ProgramState."""

    def __init__(self) -> None:
        self.transcript = Transcript()

    def __iadd__(self, value: Any) -> Self:
        known = value.parts if isinstance(value, _Cut) else ()
        if not isinstance(value, _Cut | Placeholder):
            known = parts_of(value)
        for part in known:
            if isinstance(part, Gen | Select | Placeholder):
                raise _Stop
            if not isinstance(part, ScopeBegin | ScopeEnd):
                self.transcript.add(part)
        if isinstance(value, _Cut | Placeholder):
            raise _Stop
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
