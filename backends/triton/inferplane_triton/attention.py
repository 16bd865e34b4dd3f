"""attention.paged in Triton: which kernel runs with which tiles."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, ForwardBatch, Reject, Support
from inferplane.hw.ops.attention import AttentionSpec
from inferplane_triton.kernels import attention as kernels

if TYPE_CHECKING:
    from torch import Tensor

MAX_SPLITS = 32
SPLIT_KEYS = 64
"""a part of a split sequence is not made shorter than this"""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the work is cut. `rows`: queries times heads that share a key head; `block`: keys that
    are computed at a time; `share`: programs of a decode step for each processor."""

    rows: int
    block: int = 64
    warps: int = 4
    stages: int = 3
    share: int = 2


def prefill_tiles(spec: AttentionSpec) -> Tiles:
    """In deterministic mode every tile of every batch is computed by the same instructions. What
    they hold fits into the shared memory of any GPU: 49 kB on AMD's, 74 on NVIDIA's with 99."""
    row = row_bytes(spec)
    return Tiles(rows=64 if row <= 512 else 32, block=max(16, min(64, (1 << 14) // row)), stages=2)


def decode_tiles(spec: AttentionSpec, device: Device) -> Tiles:
    """Blocks of 32 kB of keys: 74 to 84 kB of shared memory with the rest, which NVIDIA's GPUs
    have from compute capability 8.0 on. Half of that is up to a quarter slower (one H200)."""
    shared = next_power(spec.num_heads // spec.kv.num_kv_heads)
    row = row_bytes(spec)
    held = 1 << 15 if at_least(device, 80) else 1 << 14
    return Tiles(rows=max(shared, 16), block=max(16, min(128, held // row)))


def row_bytes(spec: AttentionSpec) -> int:
    """Of one query, key or value, as it is computed with"""
    return max(next_power(spec.kv.head_dim), 16) * (4 if spec.dtype == "float32" else 2)


def next_power(count: int) -> int:
    return 1 << (count - 1).bit_length()


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """Tiled kernel for prefill, split kernel for decode; which sequence is which is read on the
    device, so that a mixed step can be recorded."""

    name: str = "triton.attention"
    prefill: Tiles | None = None
    """in place of those chosen for the shape: for benchmarks"""
    decode: Tiles | None = None

    def supports(self, spec: AttentionSpec, device: Device) -> Support | Reject:
        if spec.dtype not in ("bfloat16", "float16", "float32"):
            return Reject("dtype", f"{spec.dtype} is not bfloat16, float16 or float32")
        if problem := page_problem(spec.kv.dtype, spec.dtype, device):
            return problem
        if spec.kv.layout == "opaque":
            return Reject("layout", "needs pages with strides")
        if spec.kv.head_dim > 256:
            return Reject("shape", f"head_dim {spec.kv.head_dim} is more than 256")
        return Support(priority=60, invariance="batch" if spec.determinism == "batch" else "run")

    def build(self, spec: AttentionSpec, ctx: BuildContext) -> Bound:
        prefill = self.prefill or prefill_tiles(spec)
        return Bound(
            run=_Attention(spec, ctx, prefill, self.decode or decode_tiles(spec, ctx.device)).run
        )


class _Attention:
    """One layer's attention."""

    def __init__(
        self, spec: AttentionSpec, ctx: BuildContext, prefill: Tiles, decode: Tiles
    ) -> None:
        kv = spec.kv
        self._spec = spec
        self._handle = ctx.kv(spec.layer)
        self._invariant = spec.determinism == "batch"
        self._cores = core_count(ctx.device)
        shared = spec.num_heads // kv.num_kv_heads
        self._prefill, self._decode = prefill, decode
        self._tokens = max(prefill.rows // next_power(shared), 1)
        self._rows = max(self._tokens * next_power(shared), 16)
        self._early = overlapped(ctx.device)
        self._common: dict[str, Any] = {
            "HEADS": spec.num_heads,
            "SHARED": shared,
            "DIM": kv.head_dim,
            "DIM_PAD": max(next_power(kv.head_dim), 16),
            "PAGE": kv.page_size,
            "WINDOW": spec.window,
            "SOFTCAP": spec.softcap,
            "SINKS": spec.sinks,
            "enable_fp_fusion": not self._invariant,  # see `tiled`
            **self._early,
        }

    def run(self, q: "Tensor", batch: ForwardBatch, sinks: "Tensor | None" = None) -> "Tensor":
        import torch

        decodes = batch.max_q == 1 and not self._invariant
        # padding tokens must come out as zeros; the split kernel writes these itself
        exact = decodes or not (batch.padded or batch.num_tokens != q.shape[0])
        out = (torch.empty if exact else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
        if decodes:
            self._split(q, out, sinks, batch, mixed=False)
            return out
        mixed = not self._invariant and (batch.padded or batch.num_decode > 0)
        if mixed:
            self._split(q, out, sinks, batch, mixed=True)
        seqs = batch.row.shape[0]
        tiles = q.shape[0] // self._tokens + seqs
        mask = batch.tree_mask if self._spec.tree else None  # of no use where q_len is 1
        keys, values, table, strides = self._pages(batch)
        kernels.tiled[self._spec.kv.num_kv_heads, tiles](
            q, keys, values, out, sinks, table, batch.seq_len, batch.q_start,
            batch.position, mask, 0 if mask is None else mask.shape[1],
            seqs, 2 if mixed else 1, q.stride(0), out.stride(0), *strides, self._spec.scale,
            ROWS=self._rows, TOKENS=self._tokens, TREE=mask is not None,
            BLOCK=self._prefill.block, num_warps=self._prefill.warps,
            num_stages=self._prefill.stages, **self._common,
        )  # fmt: skip
        return out

    def _pages(self, batch: ForwardBatch) -> "tuple[Tensor, Tensor, Tensor, tuple[int, ...]]":
        keys, values = self._handle.layout.split(self._handle.data)
        table = batch.page_table[self._spec.group]
        return keys, values, table, (*keys.stride()[:3], table.stride(0))

    def _split(
        self,
        q: "Tensor",
        out: "Tensor",
        sinks: "Tensor | None",
        batch: ForwardBatch,
        mixed: bool,
    ) -> None:
        import torch

        spec, kv = self._spec, self._spec.kv
        seqs = batch.row.shape[0]
        visible = min(batch.max_kv, spec.window or batch.max_kv)
        wanted = self._decode.share * self._cores // (seqs * kv.num_kv_heads)
        splits = max(1, min(wanted, -(-visible // SPLIT_KEYS), MAX_SPLITS))
        parts, most = splits > 1, next_power(splits)
        if mixed:  # kernels for any batch, as such steps are not all known when they are compiled
            parts, most = True, MAX_SPLITS
        part = lse = out
        if parts:
            shape = (seqs, spec.num_heads, splits)
            part = q.new_empty((*shape, kv.head_dim), dtype=torch.float32)
            lse = q.new_empty(shape, dtype=torch.float32)
        keys, values, table, strides = self._pages(batch)
        kernels.split[seqs, kv.num_kv_heads, splits](
            q, keys, values, out, part, lse, sinks, table, batch.seq_len, batch.q_start,
            splits, q.stride(0), out.stride(0), *strides, spec.scale,
            ROWS=self._decode.rows, PARTS=parts, MIXED=mixed, BLOCK=self._decode.block,
            num_warps=self._decode.warps, num_stages=self._decode.stages, **self._common,
        )  # fmt: skip
        if parts:
            kernels.merge[seqs, spec.num_heads](
                part, lse, out, batch.seq_len, batch.q_start, splits, out.stride(0),
                HEADS=spec.num_heads, DIM=kv.head_dim, DIM_PAD=self._common["DIM_PAD"],
                SPLITS_PAD=most, MIXED=mixed, num_warps=2, **self._early,
            )  # fmt: skip


def page_problem(pages: str, dtype: str, device: Device) -> Reject | None:
    """Pages are in the model's type, or in float8 where the device converts it."""
    if pages == dtype:
        return None
    if pages != "float8_e4m3fn":
        return Reject("dtype", f"pages in {pages}, the model is in {dtype}")
    if not at_least(device, 89):
        return Reject("hardware", f"{device.info.arch or device.info.name} has no float8_e4m3fn")
    return None


def core_count(device: Device) -> int:
    """Processors of the device: programs that run at the same time."""
    import torch

    module = torch.get_device_module(device.info.torch_device)
    if not hasattr(module, "get_device_properties"):
        return 64
    properties = module.get_device_properties(device.info.torch_device)
    return int(getattr(properties, "multi_processor_count", 64))


def overlapped(device: Device) -> dict[str, Any]:
    """Launch options of a kernel that may start while the one before it ends, where the device
    has that: NVIDIA's from compute capability 9.0 on."""
    return {"PDL": True, "launch_pdl": True} if at_least(device, 90) else {"PDL": False}


def at_least(device: Device, capability: int) -> bool:
    """An NVIDIA GPU of this compute capability, such as 90, or above."""
    family, _, number = device.info.arch.partition("_")
    return family == "sm" and number.isdecimal() and int(number) >= capability
