"""Moving keys and values in and out of the paged cache, and the fused way there from q, k, v."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferplane.hw.kv import KVSpec, as_integers, from_stored, to_stored
from inferplane.hw.op import (
    Bound,
    BuildContext,
    Determinism,
    Op,
    Reference,
    Reject,
    Tolerance,
    rounding,
)
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.rope import RopeSpec

if TYPE_CHECKING:
    from torch import Tensor

    from inferplane.hw.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class KVOpSpec:
    """Which layer's cache, and its shape."""

    layer: int
    kv: KVSpec
    determinism: Determinism = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeWriteSpec:
    """Normalize q and k per head (if `norm`), rotate them, and write k and v to the cache."""

    layer: int
    num_heads: int
    kv: KVSpec
    rope: RopeSpec
    norm: RMSNormSpec | None = None
    determinism: Determinism = "run"


def kv_write(spec: KVOpSpec, ctx: BuildContext) -> Bound:
    """run(k[T, Hkv, D], v[T, Hkv, D], slot i32[T]): slot = page * page_size + offset"""
    handle, size = ctx.kv(spec.layer), spec.kv.page_size
    inplace = ctx.device.info.traits.inplace

    def run(k: "Tensor", v: "Tensor", slot: "Tensor") -> None:
        if not inplace:
            handle.data = handle.data.clone()
        where = (slot.div(size, rounding_mode="floor").long(), slot.remainder(size).long())
        for half, new in zip(handle.layout.split(handle.data), (k, v), strict=True):
            as_integers(half).index_put_(where, as_integers(to_stored(new, half.dtype)))

    return Bound(run=run)


def kv_gather(spec: KVOpSpec, ctx: BuildContext) -> Bound:
    """run(pages i32[n]) -> [2, n * page_size, Hkv, D], in the order of `pages`; int8 as float32"""
    handle = ctx.kv(spec.layer)

    def run(pages: "Tensor") -> "Tensor":
        return from_stored(handle.layout.export_pages(handle.data, pages)).flatten(1, 2)

    return Bound(run=run)


def kv_copy(spec: KVOpSpec, ctx: BuildContext) -> Bound:
    """run(source i32[m], target i32[m]): copy slots; targets are not sources"""
    handle, size = ctx.kv(spec.layer), spec.kv.page_size
    inplace = ctx.device.info.traits.inplace

    def run(source: "Tensor", target: "Tensor") -> None:
        if not inplace:
            handle.data = handle.data.clone()
        at = [
            (s.div(size, rounding_mode="floor").long(), s.remainder(size).long())
            for s in (source, target)
        ]
        for half in map(as_integers, handle.layout.split(handle.data)):
            half.index_put_(at[1], half[at[0]])

    return Bound(run=run)


def rope_write(spec: RopeWriteSpec, ctx: BuildContext) -> Bound:
    """run(q[T, Hq, D], k[T, Hkv, D], v, position, slot, q_weight[D], k_weight[D]) -> q

    Implementations may overwrite q and k, and return q itself.
    """
    bound = [ctx.bind(op, part).run for op, part in _parts(spec)]
    norm = bound[0] if spec.norm else None
    rotate, write = bound[-2:]

    def run(
        q: "Tensor",
        k: "Tensor",
        v: "Tensor",
        position: "Tensor",
        slot: "Tensor",
        q_weight: "Tensor | None" = None,
        k_weight: "Tensor | None" = None,
    ) -> "Tensor":
        if norm is not None:
            q, k = norm(q, q_weight), norm(k, k_weight)
        q, k = rotate(q, k, position)
        write(k, v, slot)
        return q

    return Bound(run=run)


def _parts(spec: RopeWriteSpec) -> tuple[tuple[str, Any], ...]:
    """The parts are as deterministic as the whole must be."""
    strength = spec.determinism
    write = KVOpSpec(layer=spec.layer, kv=spec.kv, determinism=strength)
    norm = (("norm.rms", replace(spec.norm, determinism=strength)),) if spec.norm else ()
    return (*norm, ("rope", replace(spec.rope, determinism=strength)), ("kv.write", write))


def needs_strides(spec: Any, device: "Device") -> Reject | None:
    """References see pages through strided views; opaque layouts must bring their own ops."""
    if spec.kv.opaque:
        return Reject("layout", "the layout of these pages offers no strided views")
    return None


def _exact(spec: Any) -> Tolerance:
    return Tolerance(relative=0.0, absolute=0.0, norm=0.0)


def _pages(spec: KVOpSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {"pages": torch.randperm(8, generator=generator)[:5].to(torch.int32)}


def _slots(spec: KVOpSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    slot = torch.randperm(8 * spec.kv.page_size, generator=generator).to(torch.int32)
    half = len(slot) // 2
    return {"source": slot[:half], "target": slot[half : 2 * half]}


def _write_inputs(spec: KVOpSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (3 * spec.kv.page_size // 2, spec.kv.num_kv_heads, spec.kv.head_dim)
    stored = getattr(torch, spec.kv.dtype)
    dtype = torch.bfloat16 if stored.itemsize == 1 else stored  # and exactly so in pages

    def values() -> "Tensor":
        if stored != torch.int8:
            return torch.randn(shape, generator=generator).to(stored).to(dtype)
        codes = torch.randint(-127, 128, shape, generator=generator)
        codes[..., 0] = 127
        step = torch.randint(-9, -4, (*shape[:2], 1), generator=generator)
        return torch.ldexp(codes.to(dtype), step)

    slots = torch.randperm(8 * spec.kv.page_size, generator=generator)[: shape[0]]
    return {"k": values(), "v": values(), "slot": slots.to(torch.int32)}


def _rope_inputs(spec: RopeWriteSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = _write_inputs(KVOpSpec(layer=0, kv=spec.kv), seed)
    tokens, dtype = made["k"].shape[0], getattr(torch, spec.rope.dtype)
    q = torch.randn(tokens, spec.num_heads, spec.kv.head_dim, generator=generator).to(dtype)
    limit = spec.rope.max_position
    position = torch.randint(0, limit, (tokens,), generator=generator, dtype=torch.int32)
    weights: dict[str, Any] = {}
    if spec.norm:
        for name in ("q_weight", "k_weight"):
            weights[name] = torch.randn(spec.kv.head_dim, generator=generator).to(dtype)
    k, v = made["k"].to(dtype), made["v"].to(dtype)
    return {"q": q, "k": k, "v": v, "position": position} | {
        "slot": made["slot"],
        **weights,
    }


OPS = (
    Op(
        name="kv.write",
        spec=KVOpSpec,
        reference=Reference(kv_write, needs_strides),
        tolerance=_exact,
        inputs=_write_inputs,
    ),
    Op(
        name="kv.gather",
        spec=KVOpSpec,
        reference=Reference(kv_gather, needs_strides),
        tolerance=_exact,
        inputs=_pages,
    ),
    Op(
        name="kv.copy",
        spec=KVOpSpec,
        reference=Reference(kv_copy, needs_strides),
        tolerance=_exact,
        inputs=_slots,
    ),
    Op(
        name="qk_norm_rope_kvwrite",
        spec=RopeWriteSpec,
        reference=Reference(rope_write),
        tolerance=lambda spec: rounding(spec.rope.dtype, spec.kv.head_dim),
        inputs=_rope_inputs,
        parts=_parts,
        mutates=("q", "k"),
    ),
)
