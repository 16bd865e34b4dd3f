"""inferplane and transformers in turn, each in a process of its own: output tokens per second.

    python -m ci.bench.compare_transformers smollm2 --rounds 3

Both get the same weights, type, lengths and number of requests. Prints the median of the ratios
of all rounds and appends a line to docs/results/cpu.jsonl.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from ci.bench.machine import INFERPLANE, append, describe, run_json

BASELINE = [sys.executable, "-m", "ci.bench.transformers_baseline"]


def rates(found: dict[str, Any]) -> dict[int, float]:
    return {x["concurrency"]: x["output_tokens_per_second"] for x in found["levels"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("docs/results/cpu.jsonl"))
    asked = parser.parse_args()
    lengths = ["--input-len", str(asked.input_len), "--output-len", str(asked.output_len)]
    shape = [asked.model, *lengths, "--dtype", asked.dtype]
    shape += ["--concurrency", *map(str, asked.concurrency)]
    machine, ours, theirs = describe(), [], []
    for _ in range(asked.rounds):
        ours.append(rates(run_json([*INFERPLANE, "bench", *shape, "--device", asked.device])))
        theirs.append(rates(run_json([*BASELINE, *shape])))
    print(f"\n{machine}")
    levels = []
    for level in asked.concurrency:
        ratios = [a[level] / b[level] for a, b in zip(ours, theirs, strict=True)]
        entry = {
            "concurrency": level,
            "inferplane_tok_s": round(statistics.median(a[level] for a in ours), 1),
            "transformers_tok_s": round(statistics.median(b[level] for b in theirs), 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(r, 2) for r in ratios],
        }
        levels.append(entry)
        print(entry)
    record = {
        "benchmark": "compare_transformers",
        "model": asked.model,
        "dtype": asked.dtype,
        "input_len": asked.input_len,
        "output_len": asked.output_len,
        "rounds": asked.rounds,
        "levels": levels,
        "machine": machine,
    }
    append(asked.results, record)


if __name__ == "__main__":
    main()
