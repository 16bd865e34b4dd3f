"""What a program gets as its first argument, and what running it gives back."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

from inferplane.errors import ProgramError
from inferplane.lang.backend import warm
from inferplane.lang.executor import Executor
from inferplane.lang.expressions import (
    Appendable,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    parts_of,
)

JoinMode = Literal["gather_variable", "concate_and_append"]


class ProgramState:
    """`s += ...` appends and does not wait; `s["name"]` waits for the variable."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def __iadd__(self, value: Appendable) -> Self:
        self._executor.submit(parts_of(value))
        return self

    def __getitem__(self, name: str) -> Any:
        return self._executor.wait_for(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: str) -> bool:
        self._executor.sync()
        return name in self._executor.variables

    def get_var(self, name: str) -> Any:
        """As s[name]."""
        return self._executor.wait_for(name)

    def set_var(self, name: str, value: Any) -> None:
        self._executor.set(name, value)

    def get_meta_info(self, name: str) -> Any:
        """SGLang's meta_info of a variable: token counts, finish reason, logprobs. A list if the
        variable is one."""
        self._executor.wait_for(name)
        if name not in self._executor.meta:
            raise ProgramError(f"variable {name!r} was not generated: it has no meta info")
        return self._executor.meta[name]

    def sync(self) -> None:
        """Wait for all that was appended. Raises what has failed."""
        self._executor.sync()

    def error(self) -> BaseException | None:
        return self._executor.error

    def text(self) -> str:
        """All of it, as the model reads it."""
        self._executor.sync()
        return self._executor.backend.text(self._executor.transcript)

    def messages(self) -> list[dict[str, Any]]:
        """What was said in roles, in OpenAI's form."""
        self._executor.sync()
        return self._executor.transcript.messages()

    # Blocks

    @contextmanager
    def _between(self, begin: Any, end: Any) -> Generator[None, None, None]:
        self._executor.submit([begin])
        yield
        self._executor.submit([end])

    def system(self) -> Any:
        """with s.system(): what is appended inside has this role."""
        return self._between(RoleBegin("system"), RoleEnd("system"))

    def user(self) -> Any:
        return self._between(RoleBegin("user"), RoleEnd("user"))

    def assistant(self) -> Any:
        return self._between(RoleBegin("assistant"), RoleEnd("assistant"))

    def var_scope(self, name: str) -> Any:
        """with s.var_scope("x"): the text that is appended inside becomes the variable."""
        return self._between(ScopeBegin(name), ScopeEnd(name))

    # Forks

    def fork(self, size: int = 1) -> "StateGroup":
        """States that go on from here, side by side. The prompt so far is computed once."""
        if size < 1:
            raise ProgramError(f"fork({size}): must be at least 1")
        self._executor.sync()
        if size > 1:
            warm(self._executor.backend, self._executor.transcript)
        return StateGroup([ProgramState(self._executor.fork()) for _ in range(size)], self)

    def copy(self) -> "ProgramState":
        """Another state that goes on from here; also as `with s.copy() as other`."""
        return self.fork(1)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._executor.sync()

    # The stream

    def text_iter(self, var_name: str | None = None) -> Generator[str, None, None]:
        """The pieces of a variable, or of everything as the model reads it, as they come. In one
        piece if the program was not run with stream=True."""
        executor = self._executor
        if not executor.streaming:
            yield self.text() if var_name is None else self[var_name]
            return
        seen, last = 0, False
        while not last:
            with executor.changed:
                new, last = executor.read(var_name, seen)
                if not new and not last:
                    executor.changed.wait()
            seen += len(new)
            yield from filter(None, new)

    async def text_async_iter(self, var_name: str | None = None) -> AsyncGenerator[str, None]:
        """The same, for a caller with an event loop."""
        executor, loop, changed = self._executor, asyncio.get_running_loop(), asyncio.Event()
        if not executor.streaming:
            yield await asyncio.to_thread(self.text if var_name is None else lambda: self[var_name])
            return

        def listener() -> None:
            loop.call_soon_threadsafe(changed.set)

        executor.listen(listener)
        try:
            seen, last = 0, False
            while not last:
                changed.clear()
                with executor.changed:
                    new, last = executor.read(var_name, seen)
                if not new and not last:
                    await changed.wait()
                seen += len(new)
                for piece in filter(None, new):
                    yield piece
        finally:
            executor.forget(listener)


class StateGroup:
    """Forks of one state. `group += x` appends to all of them: x, or x[i], or x(i)."""

    def __init__(self, states: list[ProgramState], source: ProgramState) -> None:
        self.states = states
        self._source = source
        self._mark = len(source._executor.transcript.items)
        self._before = set(source._executor.variables)

    def join(self, mode: JoinMode = "gather_variable") -> None:
        """Wait for all. "gather_variable": each variable that they made is in the source a list
        of their values; "concate_and_append": what they appended is appended to the source, one
        after the other."""
        executors = [state._executor for state in self.states]
        for executor in executors:
            executor.sync()
        target = self._source._executor
        if mode == "gather_variable":
            made = [name for e in executors for name in e.variables if name not in self._before]
            for name in dict.fromkeys(made):
                values = [e.variables[name] for e in executors if name in e.variables]
                target.set(name, values)
                target.meta[name] = [e.meta.get(name) for e in executors if name in e.variables]
        elif mode == "concate_and_append":
            for executor in executors:
                target.submit(executor.transcript.items[self._mark :])
        else:
            raise ProgramError(
                f"join mode is {mode!r}, must be gather_variable or concate_and_append"
            )

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __getitem__(self, index: int) -> ProgramState:
        return self.states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        """For `group[i] += x`."""
        if self.states[index] is not state:
            raise ProgramError("a fork cannot be replaced: append to it")

    def __iadd__(
        self, value: Appendable | Sequence[Appendable] | Callable[[int], Appendable]
    ) -> Self:
        if isinstance(value, list | tuple) and len(value) != len(self.states):
            raise ProgramError(f"{len(value)} values for {len(self.states)} forks")
        for index, state in enumerate(self.states):
            if callable(value):
                state += value(index)
            elif isinstance(value, list | tuple):
                state += value[index]
            else:
                state += value  # type: ignore[arg-type]
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.join()
