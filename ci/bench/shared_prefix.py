"""Time to first token of requests with a common prefix, with the prefix cache and without.

python -m ci.bench.shared_prefix smollm2
"""

import argparse
from pathlib import Path

from ci.bench.machine import INFERPLANE, append, describe, run_json

SUFFIX = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prefix", type=int, default=1500)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=8)
    parser.add_argument("--results", type=Path, default=Path("docs/results/cpu.jsonl"))
    asked = parser.parse_args()
    command = [*INFERPLANE, "bench", asked.model, "--device", asked.device]
    command += ["--input-len", str(asked.prefix + SUFFIX), "--shared-prefix", str(asked.prefix)]
    command += ["--output-len", str(asked.output_len), "--num-prompts", str(asked.requests)]
    command += ["--concurrency", str(asked.concurrency)]
    machine = describe()
    (cached,) = run_json(command)["levels"]
    (cold,) = run_json([*command, "--disable-prefix-cache"])["levels"]
    ratios = {p: cold["ttft_ms"][p] / cached["ttft_ms"][p] for p in ("mean", "p50", "p90")}
    print(f"\n{machine}")
    for name in ratios:
        print(
            f"TTFT {name}: {cold['ttft_ms'][name]:.0f} ms without the cache, "
            f"{cached['ttft_ms'][name]:.0f} ms with it: {ratios[name]:.1f}x lower"
        )
    record = {
        "benchmark": "shared_prefix",
        "model": asked.model,
        "prefix": asked.prefix,
        "requests": asked.requests,
        "concurrency": asked.concurrency,
        "ttft_ms": cached["ttft_ms"],
        "ttft_ms_without_cache": cold["ttft_ms"],
        "ratio": {name: round(value, 2) for name, value in ratios.items()},
        "machine": machine,
    }
    append(asked.results, record)


if __name__ == "__main__":
    main()
