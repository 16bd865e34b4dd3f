"""What the machine reaches now: bytes read a second, operations a second in bf16 and int8.

    python -m ci.bench.cpu.peer.ceilings

The best of several programs counts, each the best of a few calls, so that no limit computed from
it rests on one slow program: reading is a sum over memory and a product of one row with weights in
bf16, from arrays much larger than the cache; products are those of torch (oneDNN) and ours.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from ci.bench.cpu.linears import SCHEMES, stored

from inferplane_xeon import kernels, quantized

READ_BYTES = 512 << 20
SIZE = 4096
ROWS = 1024


def best(call: Callable[[], object], seconds: float = 0.7) -> float:
    """Shortest time of a call, after one that does not count."""
    call()
    end, times = time.perf_counter() + seconds, []
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def read_rate() -> float:
    numbers = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    found = [READ_BYTES / best(numbers.sum)]
    numbers = torch.ones(READ_BYTES // 4)
    found.append(READ_BYTES / best(numbers.sum))
    del numbers
    outputs = READ_BYTES // 2 // SIZE
    weight = kernels.pack_linear(torch.zeros(outputs, SIZE, dtype=torch.bfloat16))
    x = torch.zeros(1, SIZE, dtype=torch.bfloat16)
    out = torch.empty(1, outputs, dtype=torch.bfloat16)
    found.append(READ_BYTES / best(lambda: kernels.linear(x, weight, out)))
    return max(found)


def product_rates() -> tuple[float, float]:
    """(bf16, int8), operations a second"""
    operations = 2 * ROWS * SIZE * SIZE
    x, weight = torch.randn(ROWS, SIZE).bfloat16(), torch.randn(SIZE, SIZE).bfloat16()
    out, packed = torch.empty(ROWS, SIZE).bfloat16(), kernels.pack_linear(weight)
    bf16 = [best(lambda: torch.nn.functional.linear(x, weight))]
    bf16.append(best(lambda: kernels.linear(x, packed, out)))
    a, b = torch.ones(ROWS, SIZE, dtype=torch.int8), torch.ones(SIZE, SIZE, dtype=torch.int8)
    scheme = SCHEMES["w8a8"]
    assert scheme is not None
    ours = quantized.pack(replace(stored(scheme, SIZE, SIZE)), "bfloat16")
    int8 = [best(lambda: torch._int_mm(a, b))]
    int8.append(best(lambda: quantized.quant_linear(x, ours, out)))
    return operations / min(bf16), operations / min(int8)


def main() -> None:
    kernels.library()
    bf16, int8 = product_rates()
    found = {"read": read_rate(), "bf16": bf16, "int8": int8}
    print("RESULT", json.dumps({"values": found, "versions": {"torch": torch.__version__}}))


if __name__ == "__main__":
    main()
