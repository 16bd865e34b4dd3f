"""Norms, gated activation and the fused rotary embedding in Triton."""

from typing import TYPE_CHECKING

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.kv import RopeWriteSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.rope import cos_sin_table
from inferplane_triton.attention import next_power, overlapped, page_problem
from inferplane_triton.kernels import rowwise as kernels

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("bfloat16", "float16", "float32")
HEADS = 8
"""of queries that a program turns. One H200: Qwen3-0.6B 1.33 us for one token, 1.53 with all heads
in a program, Llama-3-8B 1.17 and 1.15; 256 tokens whose q, k and v are in L2 2.95 and 2.69, 2.56
and 1.98, from memory the same"""


def _supports(dtype: str, width: int) -> Support | Reject:
    if dtype not in FLOATS:
        return Reject("dtype", f"{dtype} is not one of {FLOATS}")
    if width > 32768:
        return Reject("shape", f"rows of {width} elements do not fit one program")
    return Support(priority=60, invariance="batch")  # a row never sees another


def warps(width: int) -> int:
    return 1 if width <= 512 else 4 if width <= 4096 else 8


class RMSNorm:
    name = "triton.rms"

    def supports(self, spec: RMSNormSpec, device: Device) -> Support | Reject:
        return _supports(spec.dtype, spec.dim)

    def build(self, spec: RMSNormSpec, ctx: BuildContext) -> Bound:
        import torch

        early = overlapped(ctx.device)

        def run(x: "Tensor", weight: "Tensor") -> "Tensor":
            flat = x.reshape(-1, spec.dim)
            out = torch.empty_like(flat)
            kernels.rms[(flat.shape[0],)](
                flat, weight, out, flat.stride(0), out.stride(0), spec.dim,
                EPSILON=spec.epsilon, OFFSET=spec.offset, CAST_FIRST=spec.cast_first,
                BLOCK=next_power(spec.dim), num_warps=warps(spec.dim), **early,
            )  # fmt: skip
            return out.view(x.shape)

        return Bound(run=run)


class AddRMSNorm:
    name = "triton.add_rms"

    def supports(self, spec: RMSNormSpec, device: Device) -> Support | Reject:
        return _supports(spec.dtype, spec.dim)

    def build(self, spec: RMSNormSpec, ctx: BuildContext) -> Bound:
        import torch

        early = overlapped(ctx.device)

        def run(x: "Tensor", residual: "Tensor", weight: "Tensor") -> "tuple[Tensor, Tensor]":
            x, residual = x.contiguous(), residual.contiguous()
            out, total = torch.empty_like(x), torch.empty_like(x)
            kernels.add_rms[(x.numel() // spec.dim,)](
                x, residual, weight, out, total, spec.dim,
                EPSILON=spec.epsilon, OFFSET=spec.offset, CAST_FIRST=spec.cast_first,
                BLOCK=next_power(spec.dim), num_warps=warps(spec.dim), **early,
            )  # fmt: skip
            return out, total

        return Bound(run=run)


class Glu:
    name = "triton.glu"

    def supports(self, spec: GluSpec, device: Device) -> Support | Reject:
        return _supports(spec.dtype, 1)

    def build(self, spec: GluSpec, ctx: BuildContext) -> Bound:
        block = min(1024, next_power(spec.size))
        columns = -(-spec.size // block)
        early = overlapped(ctx.device)

        def run(x: "Tensor") -> "Tensor":
            x = x.contiguous()
            out = x.new_empty((*x.shape[:-1], spec.size))
            kernels.glu[x.numel() // (2 * spec.size), columns](
                x, out, spec.size, GELU=spec.activation == "gelu_tanh", BLOCK=block, num_warps=4,
                **early,
            )  # fmt: skip
            return out

        return Bound(run=run)


class RopeWrite:
    name = "triton.rope_write"

    def supports(self, spec: RopeWriteSpec, device: Device) -> Support | Reject:
        if problem := page_problem(spec.kv.dtype, spec.rope.dtype, device):
            return problem
        if spec.kv.layout == "opaque":
            return Reject("layout", "needs pages with strides")
        return _supports(spec.rope.dtype, spec.kv.head_dim)

    def build(self, spec: RopeWriteSpec, ctx: BuildContext) -> Bound:
        handle, kv = ctx.kv(spec.layer), spec.kv
        table = cos_sin_table(spec.rope, ctx.device.info.torch_device)
        norm = spec.norm
        early = overlapped(ctx.device)
        heads = min(HEADS, next_power(spec.num_heads))
        programs = 1 + -(-spec.num_heads // heads)

        def run(
            q: "Tensor", k: "Tensor", v: "Tensor", position: "Tensor", slot: "Tensor",
            q_weight: "Tensor | None" = None, k_weight: "Tensor | None" = None,
        ) -> "Tensor":  # fmt: skip
            keys, values = handle.layout.split(handle.data)
            out = q.new_empty(q.shape)
            kernels.rope_write[q.shape[0], programs](
                q, k, v, out, keys, values, table, q_weight, k_weight, position, slot,
                spec.num_heads, kv.num_kv_heads, q.stride(0), k.stride(0), v.stride(0),
                *keys.stride()[:3],
                PAGE=kv.page_size, Q_PAD=heads,
                K_PAD=next_power(kv.num_kv_heads), DIM=kv.head_dim,
                DIM_PAD=next_power(kv.head_dim), ROTARY=spec.rope.rotary_dim,
                INTERLEAVED=spec.rope.style == "gptj", NORM=norm is not None,
                EPSILON=norm.epsilon if norm else 0.0, OFFSET=norm.offset if norm else 0.0,
                CAST_FIRST=norm.cast_first if norm else True, num_warps=4, **early,
            )  # fmt: skip
            return out

        return Bound(run=run)
