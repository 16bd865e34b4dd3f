"""inferplane and vLLM on the same GPU, one after the other, and the ratio of each case:
python ci/bench/gpu/peers.py --vllm FOLDER --model llama3-8b --cases decode ttft prefill

FOLDER has vLLM's benchmark (`bench_vllm.py`, its configs) and `packages`, where vLLM is installed.
Both sides get the same random token ids' lengths, types and numbers of requests; vLLM runs with its
defaults: CUDA graphs and torch.compile. A ratio above 1 means that inferplane is ahead.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODES = {
    "start": None,
    "decode": "lat",
    "ttft": "prefill",
    "prefill": "prefill",
    "offline": "offline",
    "nano": "nano",
    "prefix": "prefix",
}
"""our cases and the modes of vLLM's benchmark that contain them; starts are always in it"""
PREFIXES = {"lat/": "decode/", "prefill/ttft-": "ttft/", "startup/": "start/"}
UNITS = {"ms/step": "ms", "in_tok/s": "tok/s", "out_tok/s": "tok/s"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
SCHEMES: dict[str, tuple[str, ...]] = {
    "fp8": ("quantization=fp8",),
    "int4": (f"hf_overrides={ {'quantization_config': GPTQ} }",),
}
"""what vLLM is told for a quantization of ours"""


@dataclass(frozen=True, slots=True)
class Figure:
    case: str
    unit: str
    value: float


def ours(args: argparse.Namespace) -> list[Figure]:
    """Runs engine.py, which appends to `args.json` itself, and returns what it added."""
    before = len(args.json.read_text().splitlines()) if args.json.exists() else 0
    options = ["--model", args.model, "--cases", *args.cases, "--json", str(args.json)]
    options += [f"--commit={args.commit}", f"--label={label(args)}"]
    if args.quantization:
        options += ["--set", f"quantization={args.quantization}"]
    if args.deterministic:
        options.append("--deterministic")
    subprocess.run([sys.executable, str(HERE / "engine.py"), *options], check=True)
    added = [json.loads(line) for line in args.json.read_text().splitlines()[before:]]
    return [Figure(line["case"], line["unit"], line["value"]) for line in added]


def theirs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs vLLM's benchmark and returns its records, with cases and units named as ours are."""
    modes = sorted({mode for case in args.cases if (mode := MODES[case])}) or ["prefill"]
    results = args.json.with_suffix(".vllm")
    results.unlink(missing_ok=True)
    command = [sys.executable, "bench_vllm.py", "--config", args.model, *modes]
    for option in SCHEMES.get(args.quantization, ()):
        command += ["--set", option]
    known = os.pathsep.join(
        [str((args.vllm / "packages").resolve()), os.environ.get("PYTHONPATH", "")]
    )
    environment = os.environ | {"PYTHONPATH": known}
    if args.deterministic:
        environment["VLLM_BATCH_INVARIANT"] = "1"
    command += ["--json", str(results.resolve())]
    ended = subprocess.run(command, cwd=args.vllm, env=environment).returncode
    if ended:
        sys.exit(f"vLLM's benchmark ended with status {ended}: see its output above")
    return [renamed(json.loads(line), label(args)) for line in results.read_text().splitlines()]


def renamed(record: dict[str, Any], suffix: str) -> dict[str, Any]:
    model, _, case = record["case"].partition("/")
    for old, new in PREFIXES.items():
        if case.startswith(old):
            case = new + case.removeprefix(old)
    return {
        "machine": record["device"],
        "versions": {"vllm": record["version"]},
        "commit": "",
        "case": f"{model}{suffix}/{case}",
        "value": round(record["value"], 5),
        "unit": UNITS.get(record["unit"], record["unit"]),
        "limit": None,
        "peer": f"vllm {record['version']}",
    }


def label(args: argparse.Namespace) -> str:
    parts = [args.quantization, "deterministic" if args.deterministic else ""]
    return "".join(f"-{part}" for part in parts if part)


def show(have: list[Figure], peer: list[dict[str, Any]]) -> None:
    found = {(line["case"], line["unit"]): line["value"] for line in peer}
    print(f"{'case':<36}{'inferplane':>12}{'vLLM':>12} {'unit':<7}{'ratio':>6}")
    for figure in have:
        other = found.get((figure.case, figure.unit))
        if other is None:
            continue
        rate = figure.unit.endswith("/s")
        ratio = figure.value / other if rate else other / figure.value
        values = f"{figure.value:>12.4g}{other:>12.4g} {figure.unit:<7}"
        print(f"{figure.case:<36}{values}{ratio:>6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="llama3-8b")
    parser.add_argument("--cases", nargs="+", choices=MODES, default=["decode"])
    parser.add_argument("--quantization", choices=SCHEMES, default="")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--commit", default="")
    parser.add_argument("--json", type=Path, required=True, help="results are appended here")
    args = parser.parse_args()
    peer = theirs(args)
    have = ours(args)
    with args.json.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in peer)
    show(have, peer)


if __name__ == "__main__":
    main()
