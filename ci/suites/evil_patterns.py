"""Constraints that are meant to hurt, against a real server with neighbours that stream.

    python ci/suites/evil_patterns.py [smollm2] [--device auto] [--seconds 20]

Neighbours write without an end, first alone and then while others send constraints that are too
deep, too large, or explode. Shows what each of these is answered, and how long neighbours wait from
one token to the next, with and without them. Fails if one is answered otherwise than it should be,
or if a neighbour is disturbed. Run it on an idle machine: the workers that compile take a core.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

REPO = Path(__file__).parents[2]
INFERPLANE = [sys.executable, "-m", "inferplane"]
NEIGHBOURS = 4
SENDERS = 2
START_SECONDS = 300.0


def nested(open: str, count: int, close: str, inner: str) -> str:
    return open * count + inner + close * count


GROWTH = {
    "$ref": "#/$defs/d0",
    "$defs": {f"d{i}": {"not": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9}} for i in range(30)}
    | {"d30": {"type": "integer"}},
}
BRANCHES = [{"oneOf": [{"required": [f"a{i}{j}"]} for j in range(4)]} for i in range(60)]
REFUSED: dict[str, dict[str, Any]] = {
    "30,000 parentheses": {"regex": nested("(", 30_000, ")", "a")},
    "30,000 parentheses of a grammar": {"ebnf": "root ::= " + nested("(", 30_000, ")", '"a"')},
    "repeated repetitions": {"regex": "(a{1,9999}){9999}"},
    "deep nesting": {"json_schema": nested('{"items":', 9_000, "}", "{}")},
    "recursion without an end": {"json_schema": '{"anyOf": [{"$ref": "#"}]}'},
    "growth by references": {"json_schema": json.dumps(GROWTH)},
    "growth by branches": {"json_schema": json.dumps({"allOf": BRANCHES})},
    "a huge enum": {"json_schema": json.dumps({"enum": ["x" * 60 + str(i) for i in range(9_000)]})},
}
"""each is answered with 400"""
HARMLESS: dict[str, dict[str, Any]] = {
    "a pattern that explodes when it backtracks": {"regex": "(a+)+(a|aa)*b"},
    "an automaton of 2^300 states": {"regex": "(a|b)*a(a|b){300}c"},
}
"""dangerous elsewhere; here states are made as they are reached, so they are served"""


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


def measure(
    url: str, seconds: float, evil: dict[str, dict[str, Any]]
) -> tuple[list[float], Counter[tuple[str, int]]]:
    """The gaps of all neighbours, and what the evil requests were answered."""
    stop, answers = threading.Event(), Counter[tuple[str, int]]()
    neighbours = [Neighbour(url, stop) for _ in range(NEIGHBOURS)]
    numbers = itertools.count()
    every = [*evil.items()]

    def send() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                number = next(numbers)
                name, constraint = every[number % len(every)]
                after = {"constrain_after": f"<{number}>"}  # so that no verdict is known already
                sampling = {**constraint, **after, "max_new_tokens": 4}
                body = {"text": "x", "sampling_params": sampling}
                answers[name, client.post("/generate", json=body).status_code] += 1

    senders = [threading.Thread(target=send, daemon=True) for _ in range(SENDERS * bool(evil))]
    for thread in (*neighbours, *senders):
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in (*neighbours, *senders):
        thread.join(60)
    for neighbour in neighbours:
        if neighbour.failed:
            sys.exit(f"a neighbour was {neighbour.failed}")
    return [gap for one in neighbours for gap in one.gaps], answers


def percentiles(gaps: list[float]) -> tuple[float, float]:
    """(median, 99th percentile) in milliseconds"""
    cuts = statistics.quantiles(gaps, n=100)
    return 1e3 * statistics.median(gaps), 1e3 * cuts[98]


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the three phases")
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
        measure(url, 3.0, REFUSED)  # starts the workers
        alone, _ = measure(url, asked.seconds, {})
        beside, answers = measure(url, asked.seconds, REFUSED)
        served, more = measure(url, asked.seconds, HARMLESS)
    finally:
        server.terminate()
        server.wait(60)
    wrong = 0
    for (name, status), count in sorted((answers + more).items()):
        right = status == (400 if name in REFUSED else 200)
        wrong += not right
        print(f"{name}: {status}, {count} times{'' if right else '  WRONG'}")
    base = percentiles(alone)
    print(f"from token to token, alone: median {base[0]:.1f} ms, p99 {base[1]:.1f} ms")
    for name, gaps in (("refused", beside), ("served", served)):
        median, p99 = percentiles(gaps)
        ratios = f"{median / base[0]:.2f} and {p99 / base[1]:.2f} times as long"
        print(f"beside those that are {name}: median {median:.1f} ms, p99 {p99:.1f} ms, {ratios}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
