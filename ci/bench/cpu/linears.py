"""Matrix products of the CPU backend, dense and quantized, at the sizes that models have.

    python -m ci.bench.cpu.linears --model smollm2 --rows 1,8,32,512

For each shape and number of rows, all schemes run in turn, so that a change of the machine's
speed meets all of them. Weights are read from memory, not from cache: the calls walk through copies
that are together larger than it. Per scheme: the best and the median time of a call, weight bytes a
second, as a fraction of what a plain sum over memory of that size reads in the same run, and
operations a second. Compare figures of one run only, and only on a machine that does nothing else.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ci.bench.machine import append, describe
from torch import Tensor

from inferplane.hw.quantization import QuantizedWeight, Scheme
from inferplane_xeon import kernels, quantized

MODELS = {  # (inputs, outputs) of a layer's products and of the logits
    "smollm2": ((576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152)),
    "qwen3-0.6b": ((1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024), (1024, 151936)),
}
INT8, INT4 = Scheme(weight="int8"), Scheme(weight="int4", group=32)
SCHEMES = {
    "bf16": None,
    "w8a8": replace(INT8, activation="int8"),
    "w8a8-x64": replace(INT8, activation="int8", activation_group=64),
    "w8a8-g32": replace(INT8, activation="int8", group=32),
    "w4a8-g32": replace(INT4, activation="int8"),
    "w4a8-g32-x64": replace(INT4, activation="int8", activation_group=64),
    "w4a8-g32-offset": replace(INT4, activation="int8", asymmetric=True),
    "w4a8-g128": replace(INT4, activation="int8", group=128),
    "w8": INT8,
    "w4-g32": INT4,
    "fp8": Scheme(weight="float8_e4m3fn"),
    "fp8-blocks": Scheme(weight="float8_e4m3fn", group=128, rows=128),
}
BEYOND_CACHE = 160 << 20


@dataclass
class Case:
    """One scheme at one shape: `call(copy)` runs it."""

    name: str
    call: Callable[[int], Any]
    nbytes: int
    copies: int
    times: list[float]


def stored(scheme: Scheme, outputs: int, inputs: int) -> QuantizedWeight:
    """Random values; a kernel's time does not depend on them."""
    columns = inputs // 2 if scheme.weight == "int4" else inputs
    values = torch.randint(0, 120, (outputs, columns), dtype=torch.uint8)
    kinds = {"int8": torch.int8, "int4": torch.uint8, "float8_e4m3fn": torch.float8_e4m3fn}
    scale = torch.rand(scheme.scale_shape(outputs, inputs)) * 1e-2
    offset = scale.clone() if scheme.asymmetric else None
    return QuantizedWeight(scheme, values.view(kinds[scheme.weight]), scale, offset)


def case(name: str, inputs: int, outputs: int, x: Tensor, out: Tensor) -> Case:
    scheme = SCHEMES[name]
    if scheme is None:
        dense = kernels.pack_linear(torch.randn(outputs, inputs).bfloat16())
        data = copies(dense)
        return Case(name, lambda i: kernels.linear(x, data[i], out), size(dense), len(data), [])
    packed = quantized.pack(stored(scheme, outputs, inputs), "bfloat16")
    weights = [replace(packed, data=each) for each in copies(packed.data)]

    def call(i: int) -> Tensor:
        return quantized.quant_linear(x, weights[i], out)

    return Case(name, call, size(packed.data), len(weights), [])


def size(data: Tensor) -> int:
    return data.numel() * data.element_size()


def copies(data: Tensor) -> list[Tensor]:
    return [data, *(data.clone() for _ in range(BEYOND_CACHE // size(data)))]


def reader() -> Case:
    """A plain sum over memory: what reading can reach."""
    data = torch.ones(BEYOND_CACHE // 4)
    parts = data.split(data.numel() // 8)
    return Case("read", lambda i: parts[i].sum(), size(parts[0]), len(parts), [])


def measure(cases: list[Case], seconds: float) -> None:
    """All cases in turn, a few calls at a time, until each had its share of the time."""
    at = 0
    end = time.perf_counter() + seconds * len(cases)
    while time.perf_counter() < end or at < 3:
        for each in cases:
            until = time.perf_counter() + seconds / 20
            for i in range(1000):
                start = time.perf_counter()
                each.call((at * 7 + i) % each.copies)
                now = time.perf_counter()
                each.times.append(now - start)
                if now > until:
                    break
        at += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--rows", default="1,8,32,512", help="numbers of rows, with commas")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="names, with commas")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each scheme and shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--isa", help="another instruction set than the best")
    parser.add_argument("--results", type=Path, help="add a JSON line for each figure to this file")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    library = kernels.library()
    library.set_threads(asked.threads)
    if asked.isa:
        library.set_isa(asked.isa)
    machine = describe() | {"threads": asked.threads, "kernels": library.isa()}
    print(json.dumps(machine))
    for inputs, outputs in MODELS[asked.model]:
        for rows in map(int, asked.rows.split(",")):
            x, out = torch.randn(rows, inputs).bfloat16(), torch.empty(rows, outputs).bfloat16()
            cases = [case(name, inputs, outputs, x, out) for name in asked.schemes.split(",")]
            read = reader()
            measure([read, *cases], asked.seconds)
            print(f"\n{rows} x {inputs} -> {outputs}; read {rate(read) / 1e9:.1f} GB/s")
            for each in cases:
                report(asked, machine, each, read, (rows, inputs, outputs))


def rate(each: Case) -> float:
    return each.nbytes / min(each.times)


def report(
    asked: argparse.Namespace,
    machine: dict[str, Any],
    each: Case,
    read: Case,
    shape: tuple[int, int, int],
) -> None:
    rows, inputs, outputs = shape
    best, median = min(each.times), statistics.median(each.times)
    figures = {
        "us": round(best * 1e6, 1),
        "median_us": round(median * 1e6, 1),
        "gb_s": round(rate(each) / 1e9, 2),
        "of_read": round(rate(each) / rate(read), 3),
        "gop_s": round(2 * rows * inputs * outputs / best / 1e9, 1),
    }
    print(f"  {each.name:16}", "  ".join(f"{k} {v:>9}" for k, v in figures.items()))
    if asked.results:
        record = {"benchmark": "linears", "model": asked.model, "scheme": each.name}
        record |= {"rows": rows, "inputs": inputs, "outputs": outputs, **figures}
        append(asked.results, record | {"machine": machine})


if __name__ == "__main__":
    main()
