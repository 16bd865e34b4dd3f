"""Trial compilation: a constraint from a client is compiled first in a process of its own, with a
limit on time and memory. What comes back is a Grammar, which is then known to compile, or a 400.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from inferplane import env
from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices
from inferplane.grammar.contract import Grammar, Vocabulary
from inferplane.grammar.trial_worker import Setup, Verdict, write_frame
from inferplane.sampling_params import Constraint

WORKERS = 2
TRIAL_SECONDS = 5.0
ENOUGH_SECONDS = 1.0
"""on a processor: a trial that has had as many, or waits for none, is to blame for its time"""
STARVED_SECONDS = 30.0
"""which another one may take, as everything else goes before it"""
START_SECONDS = 300.0
LOOK_SECONDS = 0.1
"""from one look at how long a trial takes to the next"""
MEMORY_BYTES = 1 << 30
MOST_WAITING = 64
CACHE_BYTES = 16 * 2**20
MODULE = "inferplane.grammar.trial_worker"

log = logging.getLogger(__name__)


class Trials:
    """Compiles constraints for one model. `load` makes its vocabulary, with the first of them. Use
    `compile` from one event loop."""

    def __init__(
        self,
        load: Callable[[], Vocabulary],
        choices: Choices | None = None,
        *,
        seconds: float = TRIAL_SECONDS,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self._load = load
        self._choices = choices or Choices()
        self._seconds = seconds
        self._memory = memory
        self._setup: Setup | None = None
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}  # by thread
        self._pool = ThreadPoolExecutor(WORKERS, "grammar-trial")
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._cached_bytes = 0
        self._open: dict[bytes, asyncio.Future[Verdict]] = {}

    async def compile(self, constraint: Constraint) -> Grammar:
        """RequestError says what is wrong with the constraint."""
        key = hashlib.sha256(msgspec.msgpack.encode(constraint)).digest()
        found = self._verdicts.get(key)
        if found is not None:
            self._verdicts.move_to_end(key)
            return grammar_of(found)
        under_way = self._open.get(key)
        if under_way is None:
            if len(self._open) >= MOST_WAITING:
                raise RequestError(
                    f"{len(self._open)} other grammars wait for compilation: try again later",
                    code="grammar_queue_full",
                    status=503,
                )
            loop = asyncio.get_running_loop()
            under_way = loop.run_in_executor(self._pool, self._try, constraint)
            self._open[key] = under_way
            under_way.add_done_callback(lambda done: self._keep(key, done))
        # one client that leaves must not stop the work that others wait for
        return grammar_of(await asyncio.shield(under_way))

    def close(self) -> None:
        for worker in list(self._workers.values()):
            worker.stop()  # whoever reads from it then goes on, and ends it
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in list(self._workers.values()):
            worker.kill()
        self._workers.clear()

    def _keep(self, key: bytes, done: "asyncio.Future[Verdict]") -> None:
        self._open.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        verdict = done.result()
        self._verdicts[key] = verdict
        self._cached_bytes += size_of(verdict)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= size_of(self._verdicts.popitem(last=False)[1])

    def _try(self, constraint: Constraint) -> Verdict:
        """In a thread of the pool, which has a process of its own."""
        with self._lock:
            if self._setup is None:
                vocabulary = self._load()
                self._setup = Setup(
                    vocabulary.pieces,
                    sorted(vocabulary.special),
                    sorted(vocabulary.ends),
                    self._choices.backend,
                    self._choices.whitespace,
                    self._memory,
                )
        thread = threading.get_ident()
        worker = self._workers.get(thread)
        try:
            if worker is None:
                worker = self._workers[thread] = Worker(self._setup)
            return worker.run(constraint, self._seconds)
        except TimeoutError:
            if self._discard(thread):
                raise RequestError(
                    f"{constraint.kind} got less than {ENOUGH_SECONDS:g} s of a processor in"
                    f" {STARVED_SECONDS:g} s,"
                    " which is too little to compile it: try again later",
                    param=constraint.kind,
                    code="grammar_not_tried",
                    status=503,
                ) from None
            took = f"more than {self._seconds:g} seconds"
        except (OSError, EOFError):
            self._discard(thread)
            took = "too much memory"
        return Verdict(
            message=f"{constraint.kind} takes {took} to compile: simplify it",
            param=constraint.kind,
            code="grammar_too_complex",
        )

    def _discard(self, thread: int) -> bool:
        """End the worker of a thread. Has it been for want of a processor?"""
        worker = self._workers.pop(thread, None)
        if worker is None:
            return True  # it has not even started
        starved = worker.starves()
        worker.kill()
        return starved


class Worker:
    """A process of trial_worker."""

    def __init__(self, setup: Setup) -> None:
        variables = env.snapshot()
        variables.pop("INFERPLANE_API_KEY", None)
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        variables["RAYON_NUM_THREADS"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            process_group=0,  # out of reach of Ctrl-C, but in one session: see trial_worker.main
        )
        self._before = 0.0
        try:
            self._send(setup)
            deadline = time.monotonic() + START_SECONDS
            self._receive(lambda: time.monotonic() > deadline)
        except BaseException:
            self.kill()
            raise

    def run(self, constraint: Constraint, seconds: float) -> Verdict:
        """TimeoutError or EOFError: it must be killed, or has died."""
        (_, self._before), begin = self._processor(), time.monotonic()

        def over() -> bool:
            took = time.monotonic() - begin
            return took > seconds and (took > STARVED_SECONDS or not self.starves())

        self._send(constraint)
        return self._receive(over)

    def starves(self) -> bool:
        """It has had little of a processor since `run` began, and waits for one, or for a disk."""
        state, seconds = self._processor()
        return seconds - self._before < ENOUGH_SECONDS and state in "RD"

    def stop(self) -> None:
        self._process.kill()

    def kill(self) -> None:
        self.stop()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _processor(self) -> tuple[str, float]:
        """What the process does, as a letter, and the seconds that it has had of a processor."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(stat[11]) + int(stat[12])  # its own and those of the system for it
        return stat[0], ticks / os.sysconf("SC_CLK_TCK")

    def _send(self, message: msgspec.Struct) -> None:
        assert self._process.stdin is not None
        write_frame(self._process.stdin, message)  # type: ignore[arg-type]

    def _receive(self, over: Callable[[], bool]) -> Verdict:
        (length,) = struct.unpack("<I", self._read(4, over))
        return msgspec.msgpack.decode(self._read(length, over), type=Verdict)

    def _read(self, count: int, over: Callable[[], bool]) -> bytes:
        assert self._process.stdout is not None
        handle, data = self._process.stdout.fileno(), b""
        poller = select.poll()  # select() takes no handle above 1023
        poller.register(handle, select.POLLIN)
        while len(data) < count:
            if not poller.poll(1000 * LOOK_SECONDS):
                if over() and not poller.poll(0):  # it may have come in between
                    raise TimeoutError
                continue
            part = os.read(handle, count - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def grammar_of(verdict: Verdict) -> Grammar:
    if verdict.grammar is None:
        raise RequestError(verdict.message, param=verdict.param, code=verdict.code)
    return verdict.grammar


def size_of(verdict: Verdict) -> int:
    """Bytes that a verdict takes in the cache, roughly."""
    return 512 + len(verdict.message) + (len(verdict.grammar.source) if verdict.grammar else 0)
