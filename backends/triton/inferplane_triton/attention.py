"""attention.paged in Triton: which kernel runs with which tiles."""

from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, ForwardBatch, Reject, Support
from inferplane.hw.ops.attention import AttentionSpec
from inferplane_triton.kernels import attention as kernels

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64
"""keys in a block; splits and windows are rounded to it"""
MAX_SPLITS = 32
SPLIT_KEYS = 64
"""a part of a split sequence is not made shorter than this"""


def next_power(count: int) -> int:
    return 1 << (count - 1).bit_length()


class PagedAttention:
    """Tiled kernel for prefill, split kernel for decode."""

    name = "triton.attention"

    def supports(self, spec: AttentionSpec, device: Device) -> Support | Reject:
        if spec.dtype not in ("bfloat16", "float16", "float32"):
            return Reject("dtype", f"{spec.dtype} is not bfloat16, float16 or float32")
        if spec.tree:
            return Reject("feature", "tree masks")
        if spec.kv.dtype != spec.dtype:
            return Reject("dtype", f"pages in {spec.kv.dtype}, the model is in {spec.dtype}")
        if spec.kv.layout == "opaque":
            return Reject("layout", "needs pages with strides")
        if spec.kv.head_dim > 256:
            return Reject("shape", f"head_dim {spec.kv.head_dim} is more than 256")
        return Support(priority=60, invariance="batch" if spec.determinism == "batch" else "run")

    def build(self, spec: AttentionSpec, ctx: BuildContext) -> Bound:
        return Bound(run=_Attention(spec, ctx).run)


class _Attention:
    """One layer's attention, with the tiles that its shape wants."""

    def __init__(self, spec: AttentionSpec, ctx: BuildContext) -> None:
        kv = spec.kv
        self._spec = spec
        self._handle = ctx.kv(spec.layer)
        self._invariant = spec.determinism == "batch"
        self._cores = core_count(ctx.device)
        shared = spec.num_heads // kv.num_kv_heads
        rows = 64 if kv.head_dim > 128 or spec.dtype == "float32" else 128
        self._tokens = max(rows // next_power(shared), 1)
        self._rows = max(self._tokens * next_power(shared), 16)
        self._decode_rows = max(next_power(shared), 16)
        self._common: dict[str, Any] = {
            "HEADS": spec.num_heads,
            "SHARED": shared,
            "DIM": kv.head_dim,
            "DIM_PAD": max(next_power(kv.head_dim), 16),
            "PAGE": kv.page_size,
            "BLOCK": BLOCK if kv.head_dim <= 128 else BLOCK // 2,
            "WINDOW": spec.window,
            "SOFTCAP": spec.softcap,
            "SINKS": spec.sinks,
            "num_stages": 3,
        }

    def run(self, q: "Tensor", batch: ForwardBatch, sinks: "Tensor | None" = None) -> "Tensor":
        import torch

        only_decode = batch.max_q == 1 and not self._invariant
        decodes = 0 if self._invariant else batch.num_decode
        if only_decode:
            decodes = batch.row.shape[0]
        # padding tokens must come out as zeros; the split kernel writes these itself
        padded = batch.num_tokens != q.shape[0] and not only_decode
        make = torch.zeros if padded else torch.empty
        out = make(q.shape, dtype=q.dtype, device=q.device)
        if decodes:
            self._decode(q, out, sinks, batch, decodes)
        seqs = batch.row.shape[0] - decodes
        if seqs > 0:
            tiles = (q.shape[0] - decodes) // self._tokens + seqs
            keys, values, table, strides = self._pages(batch)
            kernels.tiled[tiles, self._spec.kv.num_kv_heads](
                q, keys, values, out, sinks, table, batch.seq_len, batch.q_start,
                seqs, decodes, q.stride(0), out.stride(0), *strides, self._spec.scale,
                ROWS=self._rows, TOKENS=self._tokens, num_warps=4 if self._rows <= 64 else 8,
                **self._common,
            )  # fmt: skip
        return out

    def _pages(self, batch: ForwardBatch) -> "tuple[Tensor, Tensor, Tensor, tuple[int, ...]]":
        keys, values = self._handle.layout.split(self._handle.data)
        table = batch.page_table[self._spec.group]
        return keys, values, table, (*keys.stride()[:3], table.stride(0))

    def _decode(
        self,
        q: "Tensor",
        out: "Tensor",
        sinks: "Tensor | None",
        batch: ForwardBatch,
        seqs: int,
    ) -> None:
        import torch

        spec, kv = self._spec, self._spec.kv
        visible = min(batch.max_kv, spec.window or batch.max_kv)
        wanted = 2 * self._cores // (seqs * kv.num_kv_heads)
        splits = max(1, min(wanted, -(-visible // SPLIT_KEYS), MAX_SPLITS))
        part = lse = out
        if splits > 1:
            shape = (seqs, spec.num_heads, splits)
            part = q.new_empty((*shape, kv.head_dim), dtype=torch.float32)
            lse = q.new_empty(shape, dtype=torch.float32)
        keys, values, table, strides = self._pages(batch)
        kernels.split[seqs, kv.num_kv_heads, splits](
            q, keys, values, out, part, lse, sinks, table, batch.seq_len,
            q.stride(0), out.stride(0), *strides, spec.scale,
            ROWS=self._decode_rows, SPLITS=splits, num_warps=4, **self._common,
        )  # fmt: skip
        if splits > 1:
            kernels.merge[seqs, spec.num_heads](
                part, lse, out, batch.seq_len, out.stride(0),
                HEADS=spec.num_heads, DIM=kv.head_dim, DIM_PAD=self._common["DIM_PAD"],
                SPLITS=splits, SPLITS_PAD=next_power(splits), num_warps=2,
            )  # fmt: skip


def core_count(device: Device) -> int:
    """Processors of the device: programs that run at the same time."""
    import torch

    module = torch.get_device_module(device.info.torch_device)
    if not hasattr(module, "get_device_properties"):
        return 64
    properties = module.get_device_properties(device.info.torch_device)
    return int(getattr(properties, "multi_processor_count", 64))
