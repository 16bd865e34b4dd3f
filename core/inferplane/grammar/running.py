"""The grammars of an engine's requests: built beside the steps, moved on by each token, asked for
masks while the forward pass runs. Knows nothing about scheduling, devices or requests' meaning.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferplane.errors import InferplaneError
from inferplane.grammar.contract import Engine, Grammar, Matcher, Vocabulary
from inferplane.grammar.engines import open_engine
from inferplane.hw.host import give_way

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray

Built = tuple[Engine, Matcher]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Move:
    """What a token led to: `forced` tokens follow it, the output is `done`, or there is an
    `error` and the request must end."""

    forced: list[int] = field(default_factory=list)
    done: bool = False
    error: str | None = None


class Grammars:
    """Use from the thread that steps the engine. `load` makes the model's vocabulary, which takes
    a second; it is called with the first grammar."""

    def __init__(
        self,
        load: Callable[[], Vocabulary],
        open: Callable[[str, Vocabulary], Engine] = open_engine,
    ) -> None:
        self._load = load
        self._open = open
        # A slow grammar delays other slow ones, never a step, and not for long the others.
        self._builder = ThreadPoolExecutor(1, "grammar")
        self._slow_builder = ThreadPoolExecutor(1, "slow-grammar", initializer=give_way)
        self._vocabulary: Vocabulary | None = None
        self._engines: dict[str, Engine] = {}
        self._building: dict[str, Future[Built]] = {}
        self._running: dict[str, tuple[Engine, Matcher]] = {}
        self._jumps: set[str] = set()

    def close(self) -> None:
        for builder in (self._builder, self._slow_builder):
            builder.shutdown(wait=True, cancel_futures=True)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._running

    @property
    def building(self) -> int:
        """How many grammars are not ready."""
        return len(self._building)

    def build(self, request_id: str, grammar: Grammar, *, jump: bool) -> None:
        """Begin to build a request's matcher. `jump`: tell which tokens are forced."""
        if grammar.slow:
            engine = self._builder.submit(self._engine, grammar.engine)
            building = self._slow_builder.submit(self._build_slowly, engine, grammar.source)
        else:
            building = self._builder.submit(self._build, grammar)
        self._building[request_id] = building
        if jump:
            self._jumps.add(request_id)

    def ready(self, seconds: float) -> list[tuple[str, Move]]:
        """Requests whose matcher is ready, or has failed, since the last call; waits up to so
        long for one."""
        if seconds and self._building:
            wait(self._building.values(), seconds, return_when="FIRST_COMPLETED")
        ended = [(i, future) for i, future in self._building.items() if future.done()]
        return [(request_id, self._begin(request_id, future)) for request_id, future in ended]

    def drop(self, request_id: str) -> bool:
        """Forget a request. False: it has no grammar."""
        future = self._building.pop(request_id, None)
        if future is not None:
            future.cancel()
        self._jumps.discard(request_id)
        return self._running.pop(request_id, None) is not None or future is not None

    def accept(self, request_id: str, token: int) -> Move:
        """A request has sampled a token."""
        _, matcher = self._running[request_id]
        try:
            matcher.accept([token])
            return self._look(request_id, matcher)
        except Exception as error:
            return _failure(error)

    def fill(
        self, request_ids: Sequence[str | None], mask: "NDArray[int32]"
    ) -> list[tuple[str, str]]:
        """Masks of the next tokens, a row for each request, into i32[n, words] that is all ones.
        Returns the requests whose grammar failed, and why."""
        rows: dict[int, tuple[Engine, list[tuple[Matcher, int]]]] = {}
        filled = []
        for row, request_id in enumerate(request_ids):
            if request_id is not None and request_id in self._running:
                engine, matcher = self._running[request_id]
                rows.setdefault(id(engine), (engine, []))[1].append((matcher, row))
                filled.append((request_id, matcher, row))
        for engine, pairs in rows.values():
            engine.fill(pairs, mask)
        failed = []
        for request_id, matcher, row in filled:
            if error := matcher.error:
                mask[row] = -1
                failed.append((request_id, error))
        return failed

    def any(self, request_ids: Iterable[str | None]) -> bool:
        return bool(self._running) and any(i in self._running for i in request_ids)

    @property
    def words(self) -> int:
        """i32 words of a row of a mask"""
        assert self._vocabulary is not None
        return self._vocabulary.words

    def _build(self, grammar: Grammar) -> Built:
        engine = self._engine(grammar.engine)
        return engine, engine.matcher(grammar.source)

    def _build_slowly(self, opening: "Future[Engine]", source: str) -> Built:
        """In a thread that others go before, so it neither makes nor starts what they wait for."""
        engine = opening.result()
        return engine, engine.matcher(source)

    def _engine(self, name: str) -> Engine:
        """In the thread of `_builder` only."""
        if self._vocabulary is None:
            self._vocabulary = self._load()
        if name not in self._engines:
            self._engines[name] = self._open(name, self._vocabulary)
        return self._engines[name]

    def _begin(self, request_id: str, future: "Future[Built]") -> Move:
        del self._building[request_id]
        try:
            self._running[request_id] = future.result()
            return self._look(request_id, self._running[request_id][1])
        except Exception as error:
            return _failure(error)

    def _look(self, request_id: str, matcher: Matcher) -> Move:
        """What follows from the present state."""
        forced: list[int] = []
        if request_id in self._jumps and not matcher.done:
            forced = matcher.forced()
            matcher.accept(forced)
        return Move(forced, matcher.done, matcher.error or None)


def _failure(error: Exception) -> Move:
    """Whatever fails in a library, or in its use, is the end of one request, not of the engine."""
    if isinstance(error, InferplaneError):
        return Move(error=str(error))
    log.error("a grammar failed", exc_info=error)
    return Move(error=type(error).__name__)
