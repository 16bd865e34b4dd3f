"""inferplane and its peers on this CPU, the same weights, in turn: ratios and parts of the limit.

    python -m ci.bench.cpu.peers smollm2
    python -m ci.bench.cpu.peers --shape qwen3-0.6b --cases decode prefill --rounds 3
    python -m ci.bench.cpu.peers smollm2 --peers llama.cpp --cases decode --rounds 1 --seconds 0

Each peer is installed once into an environment of its own below `peers` in the cache folder
(INFERPLANE_CACHE), from the package index; what cannot be installed says why, and the run goes on.
Weights are converted once, too. In each round every engine runs in a process of its own, one at a
time, in a fresh order; nothing else should run on the machine.

decode   tokens a second at batch 1, 8, 16, from the moment when each sequence has its first token
         (as llama-bench's tg), prompt 128, 128 generated, greedy, ends of sequence ignored
prefill  prompt tokens a second to the first token of one prompt of 512
http     output tokens a second of 64 requests of 128 in and out, 32 at a time, through HTTP
start    seconds from the start of the process to the first token, files in the page cache: through
         HTTP for inferplane and vLLM, in process for others
memory   MB (PSS) of all processes after a request of 128 in and out, 4-bit weights

Precision classes: bf16; 8-bit (ours --quantization int8, and Q8_0 as stored; Q8_0; int8); 4-bit
(ours Q4_1 as stored, and --quantization int4; Q4_0 and Q4_1; int4 in groups of 64). An engine may
round inputs and its KV cache as it does by default: OpenVINO keeps an 8 bit cache. vLLM and
transformers run in bf16 alone. Threads: as many as cores, by each engine's own option (llama.cpp
n_threads, torch's thread number, vLLM's binding to all cores) or default (OpenVINO).
A ratio compares the best variant of either side, of the medians of all rounds; the lines of JSON
are written after each round and are that round's. OpenVINO's model server is not on the package
index (only its client is), so http has no such peer.
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.bench.cpu.peer import processes
from ci.bench.cpu.peer.install import CORES, PEERS, Unavailable, install
from ci.bench.cpu.peer.limits import Key
from ci.bench.cpu.peer.processes import OURS
from ci.bench.cpu.peer.report import Report
from ci.bench.cpu.peer.weights import Weights, find
from ci.bench.machine import describe

from inferplane.env import cache_dir

CASES = ("decode", "prefill", "http", "start", "memory")
PRECISIONS = ("bf16", "8-bit", "4-bit")


@dataclass(frozen=True, eq=False)
class Variant:
    """One engine with one form of the weights. `options`: fields of our Config. `also`: the cases
    beside decode and prefill that it takes part in."""

    engine: str
    name: str
    precision: str
    weights: Callable[[Weights], Path]
    options: dict[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.engine} {self.name}"


def gguf(kind: str) -> Callable[[Weights], Path]:
    return lambda weights: weights.as_gguf(kind)


def openvino(kind: str) -> Callable[[Weights], Path]:
    return lambda weights: weights.openvino(kind)


SMALL = ("start", "memory")
VARIANTS = (
    Variant(OURS, "bf16", "bf16", Weights.bf16, {"dtype": "bfloat16"}, ("http", "start")),
    Variant(OURS, "int8", "8-bit", Weights.bf16, {"quantization": "int8"}),
    Variant(OURS, "Q8_0", "8-bit", gguf("Q8_0")),
    Variant(OURS, "Q4_1", "4-bit", gguf("Q4_1"), {}, SMALL),
    Variant(OURS, "int4", "4-bit", Weights.bf16, {"quantization": "int4"}, SMALL),
    Variant("llama.cpp", "BF16", "bf16", gguf("BF16"), {}, ("start",)),
    Variant("llama.cpp", "Q8_0", "8-bit", gguf("Q8_0")),
    Variant("llama.cpp", "Q4_0", "4-bit", gguf("Q4_0")),
    Variant("llama.cpp", "Q4_1", "4-bit", gguf("Q4_1"), {}, SMALL),
    Variant("openvino", "fp16", "bf16", openvino("fp16"), {}, ("start",)),
    Variant("openvino", "int8", "8-bit", openvino("int8")),
    Variant("openvino", "int4", "4-bit", openvino("int4"), {}, SMALL),
    Variant("vllm", "bf16", "bf16", Weights.bf16, {}, ("http", "start")),
    Variant("transformers", "bf16", "bf16", Weights.bf16, {}, ("start",)),
)
SERVERS = (OURS, "vllm")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2", help="smollm2 or a .gguf file")
    parser.add_argument("--shape", choices=["qwen3-0.6b"], help="random weights instead of MODEL")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=3, help="0 only installs and converts")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--prefill", type=int, nargs="+", default=[512])
    parser.add_argument("--requests", type=int, default=64, help="through HTTP")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each figure")
    parser.add_argument("--json", type=Path, help="append results as JSON lines")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends children too
    Run(parser.parse_args()).go()


class Run:
    """What is installed, the weights, and the results of all rounds."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.folder = (cache_dir() / "peers").absolute()
        self.pythons = {OURS: Path(sys.executable)}
        for name in asked.peers:
            try:
                self.pythons[name] = install(PEERS[name], self.folder)
            except Unavailable as error:
                print(f"{name} is left out: {error}", flush=True)
        self.weights = find(asked.model, asked.shape, self.folder, self.pythons)
        self.models: dict[Variant, str] = {}
        self.found: dict[Key, list[float]] = {}  # of all rounds
        self.machine: dict[str, list[float]] = {}
        self.made: dict[Key, list[float]] = {}  # of the running round
        self.versions: dict[str, str] = {}

    def go(self) -> None:
        begin = time.perf_counter()
        for variant in VARIANTS:
            if variant.precision in self.asked.precisions and variant.engine in self.pythons:
                self.prepare(variant)
        print(f"ready after {time.perf_counter() - begin:.0f} s", flush=True)
        for number in range(self.asked.rounds):
            about = {"model": self.weights.name, "commit": commit(), "machine": describe()}
            ceilings = self.round(number)
            about |= {"versions": self.versions, "round": number + 1}
            for name, value in ceilings.items():
                self.machine.setdefault(name, []).append(value)
            for key, values in self.made.items():
                self.found.setdefault(key, []).extend(values)
            if self.asked.json is not None:  # at once: what comes later may be interrupted
                ceiling = {name: [value] for name, value in ceilings.items()}
                self.report(self.made, ceiling).append(about, self.asked.json)
        if self.found:
            self.report(self.found, self.machine).show()
        print(f"{time.perf_counter() - begin:.0f} s in all")

    def report(self, found: dict[Key, list[float]], machine: dict[str, list[float]]) -> Report:
        lengths = (self.asked.prompt, self.asked.output)
        return Report(self.weights.config(), lengths, found, machine)

    def prepare(self, variant: Variant) -> None:
        try:
            self.models[variant] = str(variant.weights(self.weights))
        except Unavailable as error:
            print(f"{variant} is left out: {error}", flush=True)

    def round(self, number: int) -> dict[str, float]:
        """All engines once; the ceilings, measured first."""
        self.made = {}
        ceilings: dict[str, float] = processes.ceilings(self.folder / "logs" / "ceilings.log")[
            "values"
        ]
        rng = random.Random(number)
        for precision in self.asked.precisions:
            same = [v for v in self.models if v.precision == precision]
            for variant in rng.sample(same, len(same)):
                if {"decode", "prefill"} & set(self.asked.cases):
                    self.attempt(variant, number, self.steps)
            for variant in rng.sample(same, len(same)):
                if set(variant.also) & set(self.asked.cases):
                    self.attempt(variant, number, self.start)
        return ceilings

    def attempt(
        self, variant: Variant, number: int, measure: Callable[[Variant, int], dict[str, float]]
    ) -> None:
        """One process; its failure is told and the run goes on."""
        begin = time.perf_counter()
        try:
            values = measure(variant, number)
        except (Unavailable, OSError, subprocess.CalledProcessError) as error:
            print(f"round {number + 1}: {variant} failed: {error}", flush=True)
            return
        shown = "  ".join(f"{case} {value:.4g}" for case, value in values.items())
        spent = time.perf_counter() - begin
        print(f"round {number + 1}: {variant}: {shown}  ({spent:.0f} s)", flush=True)
        for case, value in values.items():
            key = (variant.precision, case, variant.engine, variant.name)
            self.made[key] = [value]

    def job(self, variant: Variant, number: int, kind: str) -> dict[str, Any]:
        asked, cases = self.asked, self.asked.cases
        return {
            "kind": kind,
            "model": self.models[variant],
            "options": variant.options,
            "vocab": self.weights.config()["vocab_size"],
            "prompt": asked.prompt,
            "output": asked.output,
            "batches": asked.batches if "decode" in cases else [],
            "prefill": asked.prefill if "prefill" in cases and variant.precision != "4-bit" else [],
            "context": max(asked.prompt + asked.output, *asked.prefill) + 64,
            "seconds": asked.seconds,
            "threads": len(CORES),
            "seed": number,
        }

    def log(self, variant: Variant, kind: str) -> Path:
        return self.folder / "logs" / f"{variant.engine}-{variant.name}-{kind}.log"

    def steps(self, variant: Variant, number: int) -> dict[str, float]:
        job = self.job(variant, number, "steps")
        python, log = self.pythons[variant.engine], self.log(variant, "steps")
        result = processes.driver(variant.engine, python, job, log)
        self.versions |= result["versions"]
        values: dict[str, float] = result["values"]
        return values

    def start(self, variant: Variant, number: int) -> dict[str, float]:
        """Start, memory and HTTP, those that were asked for and that the variant is in."""
        engine, wanted = variant.engine, set(variant.also) & set(self.asked.cases)
        job = self.job(variant, number, "start")
        log = self.log(variant, "start")
        if engine in SERVERS:
            requests = self.asked.requests if "http" in wanted else 0
            many = self.asked.concurrency
            found = processes.serve(engine, self.pythons[engine], job, log, requests, many)
        else:
            found = processes.start(engine, self.pythons[engine], job, log)
        return {case: value for case, value in found.items() if case.split("/")[0] in wanted}


def commit() -> str:
    """Of this repository, with a + if files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"],
        cwd=processes.REPOSITORY,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip()


if __name__ == "__main__":
    main()
