"""Constraints that are meant to hurt, against a real server with neighbours that stream.

    python ci/suites/evil_patterns.py [smollm2] [--device auto] [--rounds 7]

Neighbours write without an end: alone, beside constraints that are too deep, too large, or
explode, and beside such as explode elsewhere and are served here. What these requests cost as
requests is measured, too: beside the same bodies with an unknown field, which are refused before
anything is compiled, and beside requests without a constraint. Such phases follow each other in
rounds, so that whatever else the machine does meets all of them. The time from one token to the
next is compared within a round. Fails if the median round is beyond the bounds below, or if
anything is answered otherwise than it should be.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

REPO = Path(__file__).parents[2]
INFERPLANE = [sys.executable, "-m", "inferplane"]
NEIGHBOURS = 4
SENDERS = 2
PERIOD = 0.4
"""seconds from one request of a sender to its next, or longer if it is answered later"""
START_SECONDS = 300.0
MOST_MEDIAN, MOST_P99 = 1.25, 2.0
"""how many times as long a neighbour may wait in the median round: median, 99th percentile. Wide
enough for a machine that others use, too."""


def nested(open: str, count: int, close: str, inner: str) -> str:
    return open * count + inner + close * count


GROWTH = {
    "$ref": "#/$defs/d0",
    "$defs": {f"d{i}": {"not": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9}} for i in range(30)}
    | {"d30": {"type": "integer"}},
}
BRANCHES = [{"oneOf": [{"required": [f"a{i}{j}"]} for j in range(4)]} for i in range(60)]
Fields = dict[str, Any]
REFUSED: dict[str, Fields] = {
    "30,000 parentheses": {"regex": nested("(", 30_000, ")", "a")},
    "30,000 parentheses of a grammar": {"ebnf": "root ::= " + nested("(", 30_000, ")", '"a"')},
    "repeated repetitions": {"regex": "(a{1,9999}){9999}"},
    "states that explode while it writes": {"regex": "(.{0,50}a.{0,50}b){1,20}c"},
    "deep nesting": {"json_schema": nested('{"items":', 9_000, "}", "{}")},
    "recursion without an end": {"json_schema": '{"anyOf": [{"$ref": "#"}]}'},
    "growth by references": {"json_schema": json.dumps(GROWTH)},
    "growth by branches": {"json_schema": json.dumps({"allOf": BRANCHES})},
    "a huge enum": {"json_schema": json.dumps({"enum": ["x" * 60 + str(i) for i in range(9_000)]})},
}
"""each is answered with 400"""
HARMLESS: dict[str, Fields] = {
    "a pattern that explodes when it backtracks": {"regex": "(a+)+(a|aa)*b"},
    "an automaton of 2^300 states": {"regex": "(a|b)*a(a|b){300}c"},
}
"""dangerous elsewhere; here states are made as they are reached, so they are served"""
KINDS: dict[str, dict[str, Fields]] = {
    "alone": {},
    "unknown field": {name: {**fields, "nonsense": 1} for name, fields in REFUSED.items()},
    "refused": REFUSED,
    "ordinary": {"no constraint": {}},
    "served": HARMLESS,
}
"""the phases of a round"""
STATUS = {"unknown field": 400, "refused": 400, "ordinary": 200, "served": 200}
LIKE = {"refused": "unknown field", "served": "ordinary"}
"""which requests cost as much as requests"""


Answer = tuple[str, int, float]
"""to which request, the status, and after how many seconds"""
JSON = {"content-type": "application/json"}


@dataclass
class Seen:
    """What the neighbours and senders of a kind of phase have seen."""

    rounds: list[list[float]] = field(default_factory=list)
    """of each phase the seconds between tokens, of all neighbours"""
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """that a sender waited for an answer"""


class Neighbour(threading.Thread):
    """Streams one answer after the other until `stop`; `gaps` has the seconds between tokens."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._url, self._stop_event = url, stop
        self.gaps: list[float] = []
        self.failed = ""

    def run(self) -> None:
        sampling = {"max_new_tokens": 400, "ignore_eos": True, "temperature": 0.0}
        body = {"text": "Once upon a time", "stream": True, "sampling_params": sampling}
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stop_event.is_set():
                with client.stream("POST", "/generate", json=body) as answer:
                    self._read(answer)

    def _read(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            self.failed = f"answered {answer.status_code}"
            self._stop_event.set()
        last = 0.0
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.perf_counter()
            if last:
                self.gaps.append(now - last)
            last = now
            if self._stop_event.is_set():
                return


def send(url: str, pipe: Any) -> None:
    """A process of its own, which leaves the processors to the server and the neighbours' clocks.
    Is told a kind of requests, then to stop, and tells (name, status, seconds) of each; None ends
    it."""
    os.nice(19)
    numbers = itertools.count()
    bodies = {kind: [*map(body_of, requests.items())] for kind, requests in KINDS.items()}
    while (kind := pipe.recv()) is not None:
        stop, answers = threading.Event(), list[Answer]()
        threads = [
            threading.Thread(target=post, args=(url, bodies[kind], numbers, stop, answers))
            for _ in range(SENDERS * bool(bodies[kind]))
        ]
        for thread in threads:
            thread.start()
        pipe.recv()
        stop.set()
        for thread in threads:
            thread.join()
        pipe.send(answers)


def body_of(request: tuple[str, Fields]) -> tuple[str, bytes]:
    """The name and the body, with a number to be put in, so that no verdict is known already."""
    name, constraint = request
    after = {"constrain_after": "<NUMBER>"} if constraint else {}
    sampling = {**constraint, **after, "max_new_tokens": 4}
    return name, json.dumps({"text": "<NUMBER>", "sampling_params": sampling}).encode()


def post(
    url: str,
    bodies: list[tuple[str, bytes]],
    numbers: "itertools.count[int]",
    stop: threading.Event,
    answers: list[Answer],
) -> None:
    wait = 0.0
    with httpx.Client(base_url=url, timeout=60, headers=JSON) as client:
        while not stop.wait(wait):
            number = next(numbers)
            name, body = bodies[number % len(bodies)]
            begin = time.perf_counter()
            body = body.replace(b"NUMBER", str(number).encode())
            status = client.post("/generate", content=body).status_code
            took = time.perf_counter() - begin
            answers.append((name, status, took))
            wait = max(0.0, PERIOD - took)


def phase(url: str, seconds: float, kind: str, pipe: Any, seen: Seen) -> None:
    """Neighbours, beside requests of a kind, for so long."""
    stop = threading.Event()
    neighbours = [Neighbour(url, stop) for _ in range(NEIGHBOURS)]
    pipe.send(kind)
    for neighbour in neighbours:
        neighbour.start()
    stop.wait(seconds)
    stop.set()
    pipe.send("stop")
    for name, status, took in pipe.recv():
        seen.answers[name, status] += 1
        seen.seconds.append(took)
    for neighbour in neighbours:
        neighbour.join(60)
        if neighbour.failed:
            sys.exit(f"a neighbour was {neighbour.failed}")
    seen.rounds.append([gap for one in neighbours for gap in one.gaps])


def percentiles(gaps: list[float]) -> tuple[float, float]:
    """(median, 99th percentile) in milliseconds"""
    cuts = statistics.quantiles(gaps, n=100)
    return 1e3 * statistics.median(gaps), 1e3 * cuts[98]


def compare(seen: dict[str, Seen], kind: str, base: str) -> bool:
    """Print how long neighbours wait in phases of a kind, and how many times as long as in those
    of the base. Is it within the bounds?"""
    rounds = [
        (percentiles(these), percentiles(those))
        for these, those in zip(seen[kind].rounds, seen[base].rounds, strict=True)
    ]
    print(f"from token to token, {kind} against {base}:")
    within = True
    for index, (title, most) in enumerate((("median", MOST_MEDIAN), ("p99", MOST_P99))):
        these, those = (statistics.median(pair[i][index] for pair in rounds) for i in (0, 1))
        ratios = sorted(pair[0][index] / pair[1][index] for pair in rounds)
        times = f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  {title} {these:.1f} ms against {those:.1f} ms, {times}")
        within &= statistics.median(ratios) <= most
    return within


def wait_until_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    sys.exit("the server did not start")


def run(url: str, rounds: int, seconds: float) -> dict[str, Seen]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    sender = context.Process(target=send, args=(url, theirs), daemon=True)
    sender.start()
    phase(url, 3.0, "refused", pipe, Seen())  # starts the workers
    seen = {kind: Seen() for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            phase(url, seconds, kind, pipe, seen[kind])
    pipe.send(None)
    sender.join(60)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a phase; a round has five")
    parser.add_argument("--port", type=int, default=30519)
    asked = parser.parse_args()
    url = f"http://127.0.0.1:{asked.port}"
    options = ["--device", asked.device, "--port", str(asked.port), "--kv-cache-tokens", "8192"]
    roots = [str(REPO / name) for name in ("core", "models", "backends/xeon", "backends/triton")]
    known = os.pathsep.join([*roots, *filter(None, sys.path)])
    server = subprocess.Popen(
        [*INFERPLANE, "serve", asked.model, *options], env={**os.environ, "PYTHONPATH": known}
    )
    try:
        wait_until_ready(url, server)
        seen = run(url, asked.rounds, asked.seconds)
    finally:
        server.terminate()
        server.wait(60)
    failed = False
    for kind, status in STATUS.items():
        for (name, answered), count in sorted(seen[kind].answers.items()):
            failed |= answered != status
            print(f"{name}: {answered}, {count} times{'' if answered == status else '  WRONG'}")
        print(f"{kind}: answered in {1e3 * statistics.median(seen[kind].seconds):.0f} ms (median)")
    for kind in STATUS:
        compare(seen, kind, "alone")
    for kind, like in LIKE.items():
        failed |= not compare(seen, kind, like)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
