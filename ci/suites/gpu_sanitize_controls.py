"""Kernels with one fault each, which a sanitizer must find: two in the language of the project's
own kernels, and the race, which that language does not let one write, in CUDA C++."""

from typing import Any

import torch
import triton
import triton.language as tl

THREADS = 256
RACE = """
extern "C" __global__ void race(float* x) {
  __shared__ float shared[256];
  shared[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = shared[(threadIdx.x + 65) % 256];
}
"""


@triton.jit  # type: ignore[untyped-decorator]
def past_the_end(x, size, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(x + size - COUNT + 1 + tl.arange(0, COUNT), 1.0)


@triton.jit  # type: ignore[untyped-decorator]
def uninitialized(x, size, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    place = x + tl.arange(0, COUNT)
    tl.store(place, tl.load(place + size - COUNT) + 1.0)


def run(name: str) -> None:
    x = torch.empty(2 * THREADS, dtype=torch.float32, device="cuda")
    if name == "race":
        kernel: Any = torch.cuda._compile_kernel(RACE, name)
        kernel(grid=(1, 1, 1), block=(THREADS, 1, 1), args=[x.zero_()])
    elif name == "uninitialized":
        uninitialized[(1,)](x, x.numel(), COUNT=THREADS)
    else:
        past_the_end[(1,)](x.zero_(), x.numel(), COUNT=THREADS)
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"the device failed, as it may: {error}")
