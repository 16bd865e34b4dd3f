"""Functions decorated as programs, and how they are run: once, streamed, or over a batch."""

import inspect
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Literal, overload

from inferplane.errors import ProgramError
from inferplane.lang.backend import warm
from inferplane.lang.default import as_backend
from inferplane.lang.executor import Executor
from inferplane.lang.sampling import Sampling, strings
from inferplane.lang.state import ProgramState
from inferplane.lang.tracing import constant_prefix
from inferplane.lang.transcript import Transcript

MOST_THREADS = 64


class Function:
    """A program: `func(s, ...)`, whose first argument is the state. Calling it is `run`."""

    def __init__(self, func: Callable[..., Any], bound: dict[str, Any] | None = None) -> None:
        parameters = list(inspect.signature(func).parameters.values())
        if not parameters:
            raise ProgramError(f"{func.__name__}() has no argument for the state: write (s, ...)")
        self.func = func
        self.__name__ = func.__name__
        self.__doc__ = func.__doc__
        self._parameters = parameters[1:]
        self.bound = dict(bound or {})

    def bind(self, **arguments: Any) -> "Function":
        """The program with some arguments fixed."""
        known = {parameter.name for parameter in self._parameters}
        for name in arguments:
            if name not in known:
                raise ProgramError(f"{self.__name__}() has no argument {name!r}")
        return Function(self.func, {**self.bound, **arguments})

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        return self.run(*args, **kwargs)

    def run(
        self,
        *args: Any,
        max_new_tokens: int = 128,
        min_new_tokens: int = 0,
        n: int = 1,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        min_p: float = 0.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        ignore_eos: bool = False,
        return_logprob: bool | None = None,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        return_text_in_logprobs: bool | None = None,
        stream: bool = False,
        backend: Any = None,
        **kwargs: Any,
    ) -> ProgramState:
        """Run it to its end and return its state; with `stream` return at once, and the state's
        text_iter gives the pieces. The sampling parameters hold for every `gen` that says nothing
        else; other keywords are the program's arguments. Raises what the program raises, and
        ProgramError, naming the variable, for a call that failed."""
        defaults = Sampling(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            n=n,
            stop=strings(stop),
            stop_token_ids=None if stop_token_ids is None else tuple(stop_token_ids),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            ignore_eos=ignore_eos,
            return_logprob=return_logprob,
            logprob_start_len=logprob_start_len,
            top_logprobs_num=top_logprobs_num,
            return_text_in_logprobs=return_text_in_logprobs,
        )
        executor = Executor(as_backend(backend), defaults, streaming=stream, running=True)
        if stream:
            work = threading.Thread(
                target=self._stream,
                args=(executor, args, kwargs),
                name="inferplane-program",
                daemon=True,
            )
            work.start()
        else:
            self._run(executor, args, kwargs)
        return ProgramState(executor)

    def run_batch(
        self,
        batch_kwargs: Sequence[dict[str, Any] | Sequence[Any]],
        *,
        backend: Any = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        **sampling: Any,
    ) -> list[ProgramState]:
        """One run for each item, a dict of arguments or a list of them, in `num_threads` threads;
        the states in the order of the items. What all runs begin with is computed once. The first
        failure is raised when those that run have ended; the rest does not start. `sampling` is
        as in `run`."""
        if isinstance(batch_kwargs, dict) or not all(
            isinstance(item, dict | list | tuple) for item in batch_kwargs
        ):
            raise ProgramError("run_batch takes a list with the arguments of each run")
        items = [self._arguments(item) for item in batch_kwargs]
        if not items:
            return []
        chosen = as_backend(backend)
        if len(items) > 1:
            warm(chosen, self._prefix(items))
        threads = MOST_THREADS if num_threads == "auto" else num_threads
        if threads < 1:
            raise ProgramError(f"num_threads is {threads}, must be at least 1")
        given_up = threading.Event()

        def run(item: dict[str, Any]) -> ProgramState | None:
            if given_up.is_set():
                return None
            try:
                return self.run(backend=chosen, **{**sampling, **item})
            except BaseException:
                given_up.set()
                raise

        with ThreadPoolExecutor(min(threads, len(items)), "inferplane-batch") as pool:
            futures = [pool.submit(run, item) for item in items]
            if progress_bar:
                _show_progress(futures)
            try:
                wait(futures)
            finally:  # an interrupt
                given_up.set()
        for future in futures:
            if future.exception() is not None:
                future.result()
        return [state for future in futures if (state := future.result()) is not None]

    def cache(self, backend: Any = None) -> str:
        """Compute what every run of the program begins with. Returns that text."""
        chosen = as_backend(backend)
        prefix = self._prefix([])
        if not prefix.items:
            return ""
        chosen.prefill(prefix)
        return chosen.text(prefix)

    def _prefix(self, items: list[dict[str, Any]]) -> Transcript:
        """What runs with these arguments begin with; without any, what all begin with."""
        known = {**self.bound, **_same(items)}
        named = [p for p in self._parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        given = {name for item in items for name in item}
        open_names = {p.name for p in named if p.default is p.empty or p.name in given}
        takes_any = len(named) < len(self._parameters)
        known = {k: v for k, v in known.items() if takes_any or k in {p.name for p in named}}
        return constant_prefix(self.func, open_names - known.keys(), known)

    def _arguments(self, item: dict[str, Any] | Sequence[Any]) -> dict[str, Any]:
        if isinstance(item, dict):
            return item
        names = [p.name for p in self._parameters if p.name not in self.bound]
        if len(item) > len(names):
            raise ProgramError(f"{self.__name__}() takes {len(names)} arguments, not {len(item)}")
        return dict(zip(names, item, strict=False))

    def _run(self, executor: Executor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        executor.start()
        try:
            self.func(ProgramState(executor), *args, **{**self.bound, **kwargs})
            executor.sync()
        except BaseException as error:
            executor.finish(error)
            raise
        executor.finish()

    def _stream(self, executor: Executor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._run(executor, args, kwargs)
        except Exception:
            return  # whoever reads the state gets it


@overload
def function(func: Callable[..., Any]) -> Function: ...
@overload
def function(func: None = None) -> Callable[[Callable[..., Any]], Function]: ...


def function(
    func: Callable[..., Any] | None = None,
) -> Function | Callable[[Callable[..., Any]], Function]:
    """Decorator: makes a function a program."""
    return Function if func is None else Function(func)


def _same(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Arguments that all have, with the same value."""
    if not items:
        return {}
    first, *others = items
    return {
        name: value
        for name, value in first.items()
        if all(name in other and _equal(value, other[name]) for other in others)
    }


def _equal(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str | int | float | bool) and one == other)


def _show_progress(futures: Sequence["Future[Any]"]) -> None:
    """A line on standard error that is rewritten; every line of its own if that is no terminal."""
    lock, done, total = threading.Lock(), 0, len(futures)
    terminal = sys.stderr.isatty()

    def show(_: "Future[Any]") -> None:
        nonlocal done
        with lock:
            done += 1
            width = 30 * done // total
            bar = f"{'#' * width:<30} {done}/{total}"
            if terminal:
                print(f"\r{bar}", end="\n" if done == total else "", file=sys.stderr, flush=True)
            elif done == total:
                print(bar, file=sys.stderr, flush=True)

    for future in futures:
        future.add_done_callback(show)
