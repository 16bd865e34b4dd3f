"""The engine in process on random weights, each case beside its limit:
python ci/bench/gpu/engine.py --model llama3-8b --cases decode prefill ttft

decode   ms a step at several batch sizes, context about 1k
prefill  64 prompts of 1,024 tokens, input tokens per second
ttft     time to first token of one prompt of 256, 1,024 and 3,072 tokens
offline  256 requests of 1,024 tokens in and 1,024 out, seconds
nano     256 requests of 100 to 1,024 tokens in and out, output tokens per second
prefix   256 requests that share 90 % of their prompt, with the prefix cache and without; what the
         cache costs where nothing is shared
idle     part of the time in which the device does nothing while 8, 64 sequences decode: between
         steps, between the launches of a step and inside its graphs, with the largest gaps
memory   device memory beside weights and KV cache after all that

The limit of a case is the larger of its bytes over the copy bandwidth and its operations over the
rate of a large matrix product, both measured in the same run.
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import workloads
from ceilings import copy_bandwidth, product_rate
from idle import decode_profile, lines

from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.plugins import Plugins
from models import WIDTHS, Shape, kv_bytes, weight_bytes


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is that and else as text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


class Bench:
    """One model, its engine, and where results go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.source = Shape(args.model)
        begin = time.perf_counter()
        self.core = self.open(disable_prefix_cache=True)
        self.ready = time.perf_counter() - begin
        begin = time.perf_counter()
        workloads.total_seconds(self.core, [[5] * 64], [1])
        self.first = time.perf_counter() - begin
        info = self.core.loaded.device.info
        self.name, self.device = info.name, info.torch_device
        self.bandwidth, self.rate = copy_bandwidth(self.device), product_rate(self.device)
        torch.get_device_module(self.device).empty_cache()  # that memory was the benchmark's
        print(
            f"{self.name}: copy {self.bandwidth / 1e12:.2f} TB/s, products "
            f"{self.rate / 1e12:.0f} TFLOP/s; engine ready in {self.ready:.2f} s, first token "
            f"{self.first:.2f} s later"
        )
        print(f"{'case':<32}{'value':>11} {'unit':<8}{'limit':>11}{'of limit':>10}")

    def open(self, **settings: Any) -> EngineCore:
        args = self.args
        chosen: dict[str, Any] = {
            "max_model_len": 4096,
            "max_running": 256,
            "max_batch_tokens": args.max_batch_tokens,
            "op": args.op,
            "disable_graphs": args.disable_graphs,
            "enable_deterministic_inference": args.deterministic,
        }
        chosen |= dict(map(setting, args.set)) | settings
        config = Config(model=args.model, device=args.device, load_format="dummy", **chosen)
        return open_engine(config, self.source, Plugins())

    def weights(self, tokens: int) -> float:
        """Seconds that the products of so many tokens take at least, without the head."""
        config = self.source.config
        head = 2 * config["vocab_size"] * config["hidden_size"]
        operations = (weight_bytes(config) - head) * tokens  # 2 operations a weight of 2 bytes
        return operations / self.rate

    def step_limit(self, batch: int, tokens: int) -> float:
        width = WIDTHS.get(self.core.loaded.config.quantization, 2.0)
        moved = weight_bytes(self.source.config, width) + kv_bytes(self.source.config, tokens)
        return max(moved / self.bandwidth, self.weights(batch))

    def report(self, case: str, value: float, unit: str, limit: float | None = None) -> None:
        """`limit` in the same unit: a time is above it, a rate below."""
        case = f"{self.args.model}{self.args.label}/{case}"
        of = None
        if limit is not None:
            of = value / limit if unit.endswith("/s") else limit / value
        shown = "" if limit is None else f"{limit:>11.4g}{of:>10.0%}"
        print(f"{case:<32}{value:>11.4g} {unit:<8}{shown}", flush=True)
        if self.args.json:
            record = {
                "machine": self.name,
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
                "commit": self.args.commit,
                "case": case,
                "value": round(value, 5),
                "unit": unit,
                "limit": None if limit is None else round(limit, 5),
                "peer": None,
            }
            with self.args.json.open("a") as file:
                file.write(json.dumps(record) + "\n")


def decode(bench: Bench) -> None:
    for batch in bench.args.batch:
        step = workloads.decode_step(bench.core, batch, 1000, 64)
        limit = bench.step_limit(batch, batch * 1032)
        bench.report(f"decode/bs{batch}", step * 1e3, "ms", limit * 1e3)


def prefill(bench: Bench) -> None:
    prompts = workloads.random_prompts(workloads.random.Random(0), 64, 1024)
    times = [workloads.total_seconds(bench.core, prompts, [1] * 64) for _ in range(3)]
    limit = bench.weights(64 * 1024)
    bench.report("prefill/64x1024", 65536 / min(times), "tok/s", 65536 / limit)


def ttft(bench: Bench) -> None:
    for length in (256, 1024, 3072):
        took = workloads.first_token(bench.core, length)
        limit = max(bench.step_limit(1, 0), bench.weights(length))
        bench.report(f"ttft/{length}", took * 1e3, "ms", limit * 1e3)


def offline(bench: Bench) -> None:
    prompts = workloads.random_prompts(workloads.random.Random(0), 256, 1024)
    took = workloads.total_seconds(bench.core, prompts, [1024] * 256)
    limit = bench.weights(256 * 1024) + 1024 * bench.step_limit(256, 256 * 1536)
    bench.report("offline/256x1024-1024", took, "s", limit)


def nano(bench: Bench) -> None:
    took, tokens = workloads.nano(bench.core)
    bench.report("nano", tokens / took, "tok/s")


def prefix(bench: Bench) -> None:
    def measure() -> tuple[float, float]:
        shared = max(workloads.shared_prefix(bench.core) for _ in range(2))
        return shared, max(workloads.nothing_shared(bench.core) for _ in range(4))

    off, off_alone = measure()
    bench.core.close()
    del bench.core
    gc.collect()  # before the next one looks how much memory is free
    torch.get_device_module(bench.device).empty_cache()
    bench.core = bench.open(disable_prefix_cache=False)
    on, on_alone = measure()
    bench.report("prefix/off", off, "tok/s")
    bench.report("prefix/on", on, "tok/s")
    bench.report("prefix/ratio", on / off, "x")
    bench.report("prefix/cost-of-nothing-shared", 100 * (off_alone / on_alone - 1), "%")


def idle(bench: Bench) -> None:
    for batch in bench.args.idle_batch:
        for name, params in (
            ("plain", {}),
            ("logprobs", {"logprobs": 5}),
            ("penalties", {"frequency_penalty": 0.1}),
            ("sampled", {"temperature": 0.8, "top_p": 0.9}),
        ):
            made = decode_profile(bench.core, batch, 1000, **params)
            case = f"idle/bs{batch}/{name}"
            bench.report(case, 100 * sum(made.idle.values()), "%")
            for where, part in made.idle.items():
                bench.report(f"{case}/{where.replace(' ', '-')}", 100 * part, "%")
            print(*lines(made, bench.args.gaps), sep="\n")
            if name in bench.args.kernels:
                for kernel, calls, spent in made.kernels[:40]:
                    print(f"  {spent:9.1f} us {calls:7.1f} calls  {kernel[:90]}")


def memory(bench: Bench) -> None:
    module = torch.get_device_module(bench.device)
    free, total = module.mem_get_info()
    weights = weight_bytes(bench.source.config)
    if not bench.source.config["tie_word_embeddings"]:
        weights += 2 * bench.source.config["vocab_size"] * bench.source.config["hidden_size"]
    kv = bench.core.loaded.budget.kv
    bench.report("memory/weights", weights / 2**30, "GiB")
    bench.report("memory/kv", kv / 2**30, "GiB")
    bench.report("memory/else", (total - free - weights - kv) / 2**30, "GiB")


def start(bench: Bench) -> None:
    bench.report("start/ready", bench.ready, "s")
    bench.report("start/first-token", bench.ready + bench.first, "s")


CASES: dict[str, Callable[[Bench], None]] = {
    "start": start,
    "decode": decode,
    "prefill": prefill,
    "ttft": ttft,
    "idle": idle,
    "memory": memory,
    "nano": nano,
    "offline": offline,
    "prefix": prefix,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3-8b")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["decode"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--idle-batch", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--gaps", type=int, default=5, help="of each idle/NAME, the largest")
    parser.add_argument("--kernels", nargs="*", default=[], help="print the kernels of idle/NAME")
    parser.add_argument("--max-batch-tokens", type=int, default=8192)
    parser.add_argument("--op", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], help="a setting: NAME=VALUE")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--disable-graphs", action="store_true")
    parser.add_argument("--label", default="", help="appended to the model's name, such as -fp8")
    parser.add_argument("--commit", default="")
    parser.add_argument("--json", type=Path, help="append results as JSON lines")
    bench = Bench(parser.parse_args())
    for case in CASES:
        if case in bench.args.cases:
            CASES[case](bench)
    bench.core.close()


if __name__ == "__main__":
    main()
