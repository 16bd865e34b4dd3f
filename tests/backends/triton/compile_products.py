"""Compiles the product kernels for a GPU that need not be there, as compile_sampling.py does: the
interpreter has neither the early start nor the packed instructions. Prints what each contains."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inferplane_triton.kernels import gemv, nibbles, quantize, rowwise, tiles

TYPES = {"w_ptr": "*bf16", "scale_ptr": "*fp32", "input_scale_ptr": "*fp32", "q_ptr": "*fp8e4nv"}
TYPES |= {"part_ptr": "*fp32", "count_ptr": "*i32"}
FP8, INT4 = {"w_ptr": "*fp8e4nv"}, {"w_ptr": "*i16", "scale_ptr": "*i64", "offset_ptr": "*i64"}
TILE = {"ROWS": 64, "M_PAD": 16, "SPLIT": 4, "WIDE": 8, "BIAS": True, "AHEAD": 8, "PDL": True}
ROW = {"ROWS": 2, "BIAS": True, "PDL": True}
SCALED = {"BLOCKED": False, "INPUT": True}
INPUT = {"DYNAMIC": True, "STATIC": False}
FOUND = ("griddepcontrol.wait", "prefetch.global.L2", "wgmma", "fma.rn.bf16x2")
QUANTIZE = {"STATIC": False, "PDL": True}
NORM = {"EPSILON": 1e-5, "OFFSET": 1.0, "CAST_FIRST": True, "ADD": True}
WHOLE = {"WIDTH": 3072, "BLOCK": 4096, "NORM": True, "GATED": False, "GELU": True, "M_PAD": 1}
FORE = {"NORM": False, "ADD": False, "M_PAD": 2}
NIBBLES = {"PLANE": 128, "ASYMMETRIC": True, "PTX": True}

CASES = [
    (tiles.dense, TILE | {"BLOCK": 128, "SERIAL": False, "RAGGED": False}, {}),
    (tiles.dense, TILE | {"BLOCK": 128, "SERIAL": True, "RAGGED": True}, {"y_ptr": "*fp32"}),
    (tiles.w8, TILE | SCALED | {"BLOCK": 256}, FP8 | {"x_ptr": "*fp8e4nv"}),
    (tiles.w8, TILE | {"BLOCK": 128, "BLOCKED": True, "INPUT": False}, FP8),
    (nibbles.int4, TILE | NIBBLES, INT4),
    (nibbles.int4, TILE | NIBBLES, INT4 | {"x_ptr": "*fp16", "scale_ptr": "*fp32"}),
    (nibbles.dequantize, {"ROWS": 64} | NIBBLES, INT4),
    (gemv.few_rows, ROW | NORM | WHOLE, {}),
    (gemv.few_rows, ROW | NORM | WHOLE | {"BIAS": False, "GATED": True, "M_PAD": 2}, {}),
    (gemv.few_rows, ROW | NORM | WHOLE | FORE, {"y_ptr": "*fp32"}),
    (gemv.one_row_w8, ROW | INPUT | {"BLOCK": 1024, "BLOCKED": False}, FP8),
    (quantize.rows, {"GROUP": 4096, "WIDTH": 4096, "STATIC": False, "PDL": True}, {}),
    (rowwise.rms_quantize, QUANTIZE | NORM | {"BLOCK": 4096, "GROUP": 4096}, {}),
    (rowwise.rms_quantize, QUANTIZE | NORM | {"BLOCK": 8192, "GROUP": 128}, {}),
    (rowwise.glu_quantize, QUANTIZE | {"GELU": False, "BLOCK": 16384, "GROUP": 16384}, {}),
    (rowwise.glu_quantize, QUANTIZE | {"GELU": True, "BLOCK": 1024, "GROUP": 128}, {}),
]


def build(target: GPUTarget) -> None:
    nvidia = target.backend == "cuda"
    for kernel, flags, types in CASES:
        off = {} if nvidia else {name: False for name in ("PDL", "PTX") if name in flags}
        constants, signature, divisible = flags | off, {}, {}
        for at, name in enumerate(kernel.arg_names):
            kind = (TYPES | types).get(name, "*bf16" if name.endswith("_ptr") else "i32")
            signature[name] = "constexpr" if name in constants else kind
            if name not in constants:
                divisible[(at,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
        text = triton.compile(source, target=target).asm.get("ptx", "")
        print(kernel.__name__, *(name for name in FOUND if name in text))


if __name__ == "__main__":
    backend, arch, width = sys.argv[1:]
    build(GPUTarget(backend, int(arch) if arch.isdecimal() else arch, int(width)))
