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

import msgspec

from inferplane import env
from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices
from inferplane.grammar.contract import Grammar, Vocabulary
from inferplane.grammar.trial_worker import Setup, Verdict, write_frame
from inferplane.sampling_params import Constraint

WORKERS = 2
TRIAL_SECONDS = 5.0
START_SECONDS = 120.0
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
        if worker is None:
            worker = self._workers[thread] = Worker(self._setup)
        try:
            return worker.run(constraint, self._seconds)
        except (OSError, EOFError, TimeoutError) as error:
            worker.kill()
            del self._workers[thread]
            slow = isinstance(error, TimeoutError)
            took = f"more than {self._seconds:g} seconds" if slow else "too much memory"
            return Verdict(
                message=f"{constraint.kind} takes {took} to compile: simplify it",
                param=constraint.kind,
                code="grammar_too_complex",
            )


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
        try:
            self._send(setup)
            self._receive(START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def run(self, constraint: Constraint, seconds: float) -> Verdict:
        """TimeoutError or EOFError: it must be killed, or has died."""
        self._send(constraint)
        return self._receive(seconds)

    def stop(self) -> None:
        self._process.kill()

    def kill(self) -> None:
        self.stop()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _send(self, message: msgspec.Struct) -> None:
        assert self._process.stdin is not None
        write_frame(self._process.stdin, message)  # type: ignore[arg-type]

    def _receive(self, seconds: float) -> Verdict:
        deadline = time.monotonic() + seconds
        (length,) = struct.unpack("<I", self._read(4, deadline))
        return msgspec.msgpack.decode(self._read(length, deadline), type=Verdict)

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        handle, data = self._process.stdout.fileno(), b""
        poller = select.poll()  # select() takes no handle above 1023
        poller.register(handle, select.POLLIN)
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(1000 * left):
                raise TimeoutError
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
