"""Compiles norms, and norms that quantize, for a GPU that need not be there, up to where Triton
gives each thread its elements: sums over a row must have one order, or bits differ.

A program of its own, as compile_products.py: BACKEND ARCH WARP_WIDTH. Prints for each width the
layouts of the sum.
"""

import re
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget

from inferplane_triton.attention import next_power
from inferplane_triton.kernels import rowwise as kernels
from inferplane_triton.rowwise import warps
from tests.backends.triton.compile_shared import lowered

FP8 = torch.float8_e4m3fn


def layout(kernel: Any, given: dict[str, Any], options: dict[str, Any], on: GPUTarget) -> str:
    text = str(lowered(kernel, given, options, on, "ttgir")[0])
    named = dict(re.findall(r"^(#\w+) = (#ttg\.blocked<.*>)", text, re.M))
    sums = re.findall(r'"tt\.reduce"\(%scale\w*\).*?: \(tensor<\w+, (#\w+)>\)', text, re.S)
    assert len(sums) == 1, sums
    return named[sums[0]]


def variants(width: int) -> list[tuple[Any, dict[str, Any]]]:
    x, scale = torch.empty(0, dtype=torch.bfloat16), torch.empty(0)
    block = next_power(width)
    common = {
        "x_ptr": x, "residual_ptr": x, "weight_ptr": x, "out_ptr": x, "sum_ptr": x, "width": width,
        "stride_x": width, "stride_out": width, "input_scale_ptr": scale, "scale_ptr": scale,
        "EPSILON": 1e-6, "OFFSET": 0.0, "CAST_FIRST": False, "BLOCK": block, "PDL": False,
        "STATIC": False,
    }  # fmt: skip
    made: list[tuple[Any, dict[str, Any]]] = [(kernels.rms, common), (kernels.add_rms, common)]
    for number in (torch.int8, FP8):
        for group in {block, 128} if number == FP8 else {block}:
            for residual in (x, None):
                changed = {"q_ptr": torch.empty(0, dtype=number), "GROUP": group}
                changed |= {"ADD": residual is not None, "residual_ptr": residual}
                made.append((kernels.rms_quantize, common | changed))
    return made


def main() -> None:
    backend, arch, width = sys.argv[1:4]
    on = GPUTarget(backend, int(arch) if arch.isdigit() else arch, int(width))
    for dim in (512, 576, 1024, 4096, 5120):
        options = {"num_warps": warps(dim)}
        layouts = {layout(k, g, options, on).replace(" ", "") for k, g in variants(dim)}
        print(dim, *sorted(layouts))


if __name__ == "__main__":
    main()
