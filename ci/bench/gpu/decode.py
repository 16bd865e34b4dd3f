"""Time of a decode step beside its roofline: python ci/bench/gpu/decode.py --model llama3-8b

Runs the engine in process on random weights. Every sequence has a random prompt of --context
tokens; once all are prefilled, decode steps are timed by the host over the whole loop (scheduling,
launch, sampling, result), so that anything not hidden behind the device shows. The roofline is the
bytes of weights and KV over the copy bandwidth measured in the same run.
"""

import argparse
import itertools
import json
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.messages import Submit
from inferplane.plugins import Plugins
from inferplane.sampling_params import SamplingParams
from models import Shape, kv_bytes, weight_bytes


def copy_bandwidth(torch_device: str, nbytes: int = 2**31) -> float:
    """Bytes read and written per second by a large copy on the device; median of 10."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=torch_device)
    target = torch.empty_like(source)
    module = torch.get_device_module(torch_device)
    times = []
    for _ in range(12):
        module.synchronize()
        begin = time.perf_counter()
        target.copy_(source)
        module.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * nbytes / statistics.median(times[2:])


def submit(core: EngineCore, count: int, context: int, output: int, rng: random.Random) -> None:
    vocab = core.info.vocab_size
    for index in range(count):
        prompt = [rng.randrange(vocab) for _ in range(context)]
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        core.handle(
            Submit(
                request_id=f"{rng.random()}-{index}",
                prompt=prompt,
                params=params,
                stop_ids=[],
                max_tokens=output,
                seed=index,
            )
        )


def decode_time(core: EngineCore, batch: int, context: int, output: int) -> tuple[float, float]:
    """(seconds of a decode step, seconds of the whole prefill)"""
    rng = random.Random(batch)
    submit(core, batch, context, output, rng)
    seen: dict[str, int] = {}
    begin = time.perf_counter()
    while len(seen) < batch:
        for out in core.step():
            seen[out.request_id] = seen.get(out.request_id, 0) + len(out.tokens)
    prefill = time.perf_counter() - begin
    stamps = [time.perf_counter()]
    while core.has_work:
        if core.step():
            stamps.append(time.perf_counter())
    steps = [b - a for a, b in itertools.pairwise(stamps)]
    middle = steps[len(steps) // 8 : -max(len(steps) // 8, 1)]
    return statistics.median(middle), prefill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama3-8b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--op", action="append", default=[])
    parser.add_argument("--disable-graphs", action="store_true")
    parser.add_argument("--commit", default="")
    parser.add_argument("--json", type=Path, help="append results as JSON lines")
    args = parser.parse_args()
    source = Shape(args.model)
    begin = time.perf_counter()
    core = open_engine(
        Config(
            model=args.model,
            device=args.device,
            load_format="dummy",
            op=args.op,
            disable_graphs=args.disable_graphs,
            max_model_len=args.context + args.output + 16,
            max_running=max(args.batch),
            max_batch_tokens=8192,
        ),
        source,
        Plugins(),
    )
    started = time.perf_counter() - begin
    where = core.loaded.device.info
    bandwidth = copy_bandwidth(where.torch_device)
    print(f"{where.name}: copy {bandwidth / 1e12:.2f} TB/s; engine ready in {started:.1f} s")
    print(f"{'case':<28}{'ms/step':>9}{'limit':>9}{'of limit':>9}{'tok/s':>9}{'prefill':>9}")
    for batch in args.batch:
        step, prefill = decode_time(core, batch, args.context, args.output)
        tokens = batch * (args.context + args.output // 2)
        limit = (weight_bytes(source.config) + kv_bytes(source.config, tokens)) / bandwidth
        case = f"{args.model}/decode/bs{batch}"
        print(
            f"{case:<28}{step * 1e3:>9.2f}{limit * 1e3:>9.2f}{limit / step:>9.0%}"
            f"{batch / step:>9.0f}{batch * args.context / prefill:>9.0f}"
        )
        if args.json:
            record: dict[str, Any] = {
                "machine": where.name,
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
                "commit": args.commit,
                "case": case,
                "value": round(step * 1e3, 4),
                "unit": "ms/step",
                "limit": round(limit * 1e3, 4),
                "peer": None,
            }
            with args.json.open("a") as file:
                file.write(json.dumps(record) + "\n")
    core.close()


if __name__ == "__main__":
    main()
