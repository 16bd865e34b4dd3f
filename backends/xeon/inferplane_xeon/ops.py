"""The contract's ops on the C++ kernels.

All of them are batch-invariant: a row's arithmetic and its order depend on that row alone. So the
same kernels serve normal and deterministic mode. Arguments are what the contract says (types and
contiguity follow from the spec); nothing is checked per call.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inferplane.hw.kv import KVSpec, LayerKV
from inferplane.hw.op import Bound, BuildContext, OpImpl, Packing, Reject, Support, describe
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.kv import KVOpSpec, RopeWriteSpec
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.rope import RopeSpec, cos_sin_table
from inferplane_xeon import kernels, quantized
from inferplane_xeon.quantized import quant_problem
from inferplane_xeon.sampling import (
    sampling_draw,
    sampling_filter,
    sampling_logprobs,
    sampling_problem,
)

if TYPE_CHECKING:
    from torch import Tensor

    from inferplane.hw.batch import ForwardBatch
    from inferplane.hw.device import Device

DTYPES = ("bfloat16", "float32")
MAX_HEAD_DIM = 256
LAYOUTS = ("head_major", "canonical")
NATIVE = Support(priority=80, invariance="batch")
TILED = replace(NATIVE, notes=kernels.TILES_NOTE)


def dtype_problem(*dtypes: str) -> Reject | None:
    if set(dtypes) - set(DTYPES) or len(set(dtypes)) > 1:
        return Reject("dtype", f"{'/'.join(dict.fromkeys(dtypes))}: kernels for {DTYPES} alone")
    return None


def kv_problem(kv: KVSpec, *dtypes: str) -> Reject | None:
    if kv.head_dim % 8 or kv.head_dim > MAX_HEAD_DIM:
        return Reject("shape", f"head_dim {kv.head_dim} is no multiple of 8 up to {MAX_HEAD_DIM}")
    if kv.layout not in LAYOUTS:
        return Reject("layout", f"{kv.layout} not in {LAYOUTS}")
    return dtype_problem(*(() if kv.dtype == "int8" else (kv.dtype,)), *dtypes)


def dense_problem(spec: LinearSpec | LogitsSpec) -> Reject | None:
    if spec.scheme:
        return Reject("feature", f"the weights are quantized: {describe(spec.scheme)}")
    return dtype_problem(spec.dtype)


@dataclass(slots=True)
class CacheView:
    """Keys and values of a layer as strided views, made again when the handle's data changes."""

    handle: LayerKV
    data: Any = None
    halves: "tuple[Tensor, Tensor] | None" = None

    def get(self) -> "tuple[Tensor, Tensor]":
        if self.halves is None or self.handle.data is not self.data:
            self.data = self.handle.data
            self.halves = self.handle.layout.split(self.data)
        return self.halves


@dataclass(slots=True)
class Tables:
    """Cosines and sines, one table for all layers of a kind."""

    made: "dict[RopeSpec, Tensor]" = field(default_factory=dict)

    def get(self, spec: RopeSpec) -> "Tensor":
        if spec not in self.made:
            self.made[spec] = cos_sin_table(spec, "cpu").contiguous()
        return self.made[spec]


def uses_tiles(spec: Any, device: "Device") -> bool:
    """Whether a product runs on matrix tiles; csrc/tiles.h."""
    if device.info.arch != "amx" or not isinstance(spec, LinearSpec | LogitsSpec):
        return False
    return spec.dtype == "bfloat16" or (
        spec.scheme is not None and spec.scheme.activation == "int8"
    )


@dataclass(frozen=True, slots=True)
class Native:
    """One op on one kernel: `problem` says why not, `bind` makes the callable."""

    name: str
    problem: Callable[[Any], Reject | None]
    bind: Callable[[Any, BuildContext], Bound]

    def supports(self, spec: Any, device: "Device") -> Support | Reject:
        return self.problem(spec) or (TILED if uses_tiles(spec, device) else NATIVE)

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        return self.bind(spec, ctx)


def attention_problem(spec: AttentionSpec) -> Reject | None:
    if spec.tree:
        return Reject("feature", "tree masks are not supported")
    return kv_problem(spec.kv, spec.dtype)


def attention(spec: AttentionSpec, ctx: BuildContext) -> Bound:
    view, group, dtype = CacheView(ctx.kv(spec.layer)), spec.group, spec.dtype
    empty, attend = ctx.empty, kernels.attention
    scale, window, softcap = spec.scale, spec.window, spec.softcap

    def run(q: "Tensor", batch: "ForwardBatch", sinks: "Tensor | None" = None) -> "Tensor":
        return attend(
            q,
            view.get(),
            batch.page_table[group],
            batch.seq_len,
            batch.q_start,
            empty(q.shape, dtype),
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )

    return Bound(run=run)


def kv_write(spec: KVOpSpec, ctx: BuildContext) -> Bound:
    import torch

    view, half = CacheView(ctx.kv(spec.layer)), torch.float16

    def run(k: "Tensor", v: "Tensor", slot: "Tensor") -> None:
        if k.dtype == half:  # into int8 pages; the kernel knows two types
            k, v = k.float(), v.float()
        kernels.kv_write(k, v, view.get(), slot)

    return Bound(run=run)


def rope(tables: Tables) -> Callable[[RopeSpec, BuildContext], Bound]:
    def bind(spec: RopeSpec, ctx: BuildContext) -> Bound:
        table, interleaved, dtype = tables.get(spec), spec.style == "gptj", spec.dtype

        def run(q: "Tensor", k: "Tensor", position: "Tensor") -> "tuple[Tensor, Tensor]":
            turned = ctx.empty(q.shape, dtype), ctx.empty(k.shape, dtype)
            kernels.rope(q, k, table, position, *turned, interleaved=interleaved)
            return turned

        return Bound(run=run)

    return bind


def rope_problem(spec: RopeSpec) -> Reject | None:
    if spec.rotary_dim % 2:
        return Reject("shape", f"rotary_dim {spec.rotary_dim} is odd")
    if spec.head_dim > MAX_HEAD_DIM:
        return Reject("shape", f"head_dim {spec.head_dim} is above {MAX_HEAD_DIM}")
    return dtype_problem(spec.dtype)


def rope_write_problem(spec: RopeWriteSpec) -> Reject | None:
    norm = (spec.norm.dtype,) if spec.norm else ()
    problem = rope_problem(spec.rope)
    return problem or kv_problem(spec.kv, spec.rope.dtype, *norm)


def rope_write(tables: Tables) -> Callable[[RopeWriteSpec, BuildContext], Bound]:
    def bind(spec: RopeWriteSpec, ctx: BuildContext) -> Bound:
        view, table, dtype = CacheView(ctx.kv(spec.layer)), tables.get(spec.rope), spec.rope.dtype
        interleaved, norm = spec.rope.style == "gptj", spec.norm
        epsilon, offset, cast = (
            (norm.epsilon, norm.offset, norm.cast_first) if norm else (0.0, 0.0, True)
        )

        def run(
            q: "Tensor",
            k: "Tensor",
            v: "Tensor",
            position: "Tensor",
            slot: "Tensor",
            q_weight: "Tensor | None" = None,
            k_weight: "Tensor | None" = None,
        ) -> "Tensor":
            out = ctx.empty(q.shape, dtype)
            kernels.rope(
                q,
                k,
                table,
                position,
                out,
                None,
                interleaved=interleaved,
                norms=None if q_weight is None or k_weight is None else (q_weight, k_weight),
                eps=epsilon,
                weight_offset=offset,
                cast_before_weight=cast,
                write=(v, view.get(), slot),
            )
            return out

        return Bound(run=run)

    return bind


def rms_norm(spec: RMSNormSpec, ctx: BuildContext) -> Bound:
    dim, dtype, epsilon = spec.dim, spec.dtype, spec.epsilon
    offset, cast = spec.offset, spec.cast_first

    def run(x: "Tensor", weight: "Tensor") -> "Tensor":
        out = ctx.empty(x.shape, dtype)
        kernels.rms_norm(
            x.reshape(-1, dim),
            weight,
            out,
            eps=epsilon,
            weight_offset=offset,
            cast_before_weight=cast,
        )
        return out

    return Bound(run=run)


def add_rms_norm(spec: RMSNormSpec, ctx: BuildContext) -> Bound:
    dim, dtype, epsilon = spec.dim, spec.dtype, spec.epsilon
    offset, cast = spec.offset, spec.cast_first

    def run(x: "Tensor", residual: "Tensor", weight: "Tensor") -> "tuple[Tensor, Tensor]":
        out, total = ctx.empty(x.shape, dtype), ctx.empty(x.shape, dtype)
        kernels.rms_norm(
            x.reshape(-1, dim),
            weight,
            out,
            eps=epsilon,
            weight_offset=offset,
            cast_before_weight=cast,
            residual=residual.contiguous(),
            residual_out=total,
        )
        return out, total

    return Bound(run=run)


def glu(spec: GluSpec, ctx: BuildContext) -> Bound:
    size, dtype, gelu = spec.size, spec.dtype, spec.activation == "gelu_tanh"

    def run(x: "Tensor") -> "Tensor":
        return kernels.glu(x, ctx.empty((x.shape[0], size), dtype), gelu=gelu)

    return Bound(run=run)


def embedding(spec: EmbeddingSpec, ctx: BuildContext) -> Bound:
    import torch

    dim, dtype = spec.dim, spec.dtype
    scale = float(torch.tensor(spec.scale, dtype=getattr(torch, dtype)))

    def run(ids: "Tensor", weight: "Tensor") -> "Tensor":
        return kernels.embedding(ids, weight, ctx.empty((ids.shape[0], dim), dtype), scale=scale)

    return Bound(run=run)


Packed = tuple["Tensor", "Tensor | None"]


def _save(packed: Packed) -> "dict[str, Tensor]":
    weight, bias = packed
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def matrix_packing() -> Packing:
    return Packing(
        kernels.packed_form(), lambda weight: {"weight": weight}, lambda kept: kept["weight"]
    )


def linear(spec: LinearSpec, ctx: BuildContext) -> Bound:
    outputs, dtype = spec.out_features, spec.dtype

    def prepack(weight: "Tensor", bias: "Tensor | None" = None) -> Packed:
        return kernels.pack_linear(weight), bias

    def run(x: "Tensor", packed: Packed) -> "Tensor":
        out = ctx.empty((x.shape[0], outputs), dtype)
        return kernels.linear(x, packed[0], out, bias=packed[1])

    packing = Packing(kernels.packed_form(), _save, lambda kept: (kept["weight"], kept.get("bias")))
    return Bound(run=run, prepack=prepack, packing=packing)


def gated_linear(spec: GatedLinearSpec, ctx: BuildContext) -> Bound:
    size, dtype, activation = spec.size, spec.dtype, spec.activation

    def prepack(weight: "Tensor") -> "Tensor":
        return kernels.pack_linear(kernels.in_turns(weight))

    def run(x: "Tensor", packed: "Tensor") -> "Tensor":
        return kernels.linear(x, packed, ctx.empty((x.shape[0], size), dtype), glu=activation)

    return Bound(run=run, prepack=prepack, packing=matrix_packing())


def logits(spec: LogitsSpec, ctx: BuildContext) -> Bound:
    vocab, softcap = spec.vocab, spec.softcap

    def run(hidden: "Tensor", packed: "Tensor") -> "Tensor":
        out = ctx.empty((hidden.shape[0], vocab), "float32")
        return kernels.linear(hidden, packed, out, softcap=softcap)

    return Bound(run=run, prepack=kernels.pack_linear, packing=matrix_packing())


def implementations() -> "list[tuple[str, OpImpl]]":
    tables = Tables()

    def plain(spec: RMSNormSpec | GluSpec | EmbeddingSpec) -> Reject | None:
        return dtype_problem(spec.dtype)

    def gated_dense(spec: GatedLinearSpec) -> Reject | None:
        return dense_problem(spec.linear)

    def gated_quant(spec: GatedLinearSpec) -> Reject | None:
        return quant_problem(spec.linear)

    def write(spec: KVOpSpec) -> Reject | None:
        return kv_problem(spec.kv)

    return [
        ("attention.paged", Native("xeon.attention", attention_problem, attention)),
        ("kv.write", Native("xeon.kv_write", write, kv_write)),
        ("rope", Native("xeon.rope", rope_problem, rope(tables))),
        ("qk_norm_rope_kvwrite", Native("xeon.rope", rope_write_problem, rope_write(tables))),
        ("norm.rms", Native("xeon.norm", plain, rms_norm)),
        ("norm.add_rms", Native("xeon.norm", plain, add_rms_norm)),
        ("activation.glu", Native("xeon.glu", plain, glu)),
        ("linear", Native("xeon.linear", dense_problem, linear)),
        ("linear", Native("xeon.quant_linear", quant_problem, quantized.linear)),
        ("linear.glu", Native("xeon.linear", gated_dense, gated_linear)),
        ("linear.glu", Native("xeon.quant_linear", gated_quant, quantized.gated_linear)),
        ("logits", Native("xeon.linear", dense_problem, logits)),
        ("logits", Native("xeon.quant_linear", quant_problem, quantized.logits)),
        ("embedding", Native("xeon.embedding", plain, embedding)),
        ("sampling.filter", Native("xeon.sampling", sampling_problem, sampling_filter)),
        ("sampling.draw", Native("xeon.sampling", sampling_problem, sampling_draw)),
        ("sampling.logprobs", Native("xeon.sampling", sampling_problem, sampling_logprobs)),
    ]
