"""attention.paged by FlashAttention-3 (Shah et al., arXiv 2407.08608), package flash_attn_3.

Its kernels read all lengths on the device, so that steps are recorded like any other. Pages are
gathered key by key; keys behind a sequence's end are never used, values there count as zeros.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError
from inferplane.hw import Bound, BuildContext, Device, ForwardBatch, Reject, Support
from inferplane.hw.ops.attention import AttentionSpec
from inferplane_cuda.attention.packages import missing, processors, untaken

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "flash_attn_3"
HEAD_DIMS = (64, 96, 128, 192, 256)
LARGEST_PAGE = 32
"""pages of 64 keys and more may be read whole, with whatever lies behind the sequence's end"""
MAX_SPLITS = 32
EXTEND = 70
"""above triton.attention, which takes 1.5 to 1.9 times as long from 1,024 queries on, but decodes
faster (docs/performance.md)"""


@dataclass(frozen=True, slots=True)
class FlashAttention3:
    name: str = "cuda.fa3"
    splits: int | None = None
    """parts of a decode step at most, in place of those chosen for the shape: for benchmarks"""

    def supports(self, spec: AttentionSpec, device: Device) -> Support | Reject:
        problem = (
            missing(PACKAGE, "tokenspeed-fa3")
            or untaken(spec, device)
            or self._untaken(spec, device)
            or left_out(spec, build_flags())
        )
        if problem:
            return problem
        if spec.determinism == "batch":
            return Support(priority=40, invariance="batch", notes="never splits a sequence")
        return Support(priority=40, extend=EXTEND, invariance="run", notes="FlashAttention-3")

    def _untaken(self, spec: AttentionSpec, device: Device) -> Reject | None:
        if device.info.arch != "sm_90":
            return Reject("hardware", f"made for sm_90, not {device.info.arch or 'this GPU'}")
        if spec.kv.dtype != spec.dtype:
            return Reject("dtype", f"pages in {spec.kv.dtype}, the model is in {spec.dtype}")
        if spec.sinks:
            return Reject("feature", "sinks in float32")
        if spec.kv.head_dim % 8:
            return Reject("shape", f"head_dim {spec.kv.head_dim} is not a multiple of 8")
        if spec.kv.page_size > LARGEST_PAGE:
            return Reject("page_size", f"{spec.kv.page_size} is more than {LARGEST_PAGE}")
        return None

    def build(self, spec: AttentionSpec, ctx: BuildContext) -> Bound:
        try:
            import_module(f"{PACKAGE}._C")  # makes its operators known to torch
        except (ImportError, OSError) as error:
            raise DeviceError(
                f"{PACKAGE} is installed but cannot be loaded ({error}): reinstall it for this "
                "torch, or take another --attention-backend"
            ) from error
        return Bound(run=_Attention(spec, ctx, self.splits).run)


def build_flags() -> dict[str, bool]:
    """What the package's build says it left out; nothing if it does not say."""
    if find_spec("flash_attn_config") is None:
        return {}
    config: dict[str, Any] = getattr(import_module("flash_attn_config"), "CONFIG", {})
    return dict(config.get("build_flags", {}))


def left_out(spec: AttentionSpec, flags: dict[str, bool]) -> Reject | None:
    """Why a package built with these flags lacks the kernel."""

    def without(name: str) -> bool:
        return flags.get(f"FLASHATTENTION_DISABLE_{name}", False)

    dims = [dim for dim in HEAD_DIMS if not without(f"HDIM{dim}")]
    if spec.kv.head_dim > max(dims, default=0):
        return Reject("shape", f"head_dim {spec.kv.head_dim}, the package has up to {dims[-1:]}")
    if without("PAGEDKV"):
        return Reject("library", "the package is built without pages")
    if without("VARLEN"):
        return Reject("library", "the package is built without sequences of different lengths")
    if spec.softcap and without("SOFTCAP"):
        return Reject("feature", "the package is built without softcap")
    if spec.window and without("LOCAL"):
        return Reject("feature", "the package is built without windows")
    if spec.dtype == "float16" and without("FP16"):
        return Reject("dtype", "the package is built without float16")
    return None


class _Attention:
    """One layer's attention."""

    def __init__(self, spec: AttentionSpec, ctx: BuildContext, splits: int | None) -> None:
        self._spec = spec
        self._handle = ctx.kv(spec.layer)
        self._invariant = spec.determinism == "batch"
        whole = build_flags().get("FLASHATTENTION_DISABLE_SPLIT", False)
        self._splits = 1 if whole else splits
        self._processors = processors(ctx.device)

    def run(self, q: "Tensor", batch: ForwardBatch, sinks: "Tensor | None" = None) -> "Tensor":
        """A step that only decodes has one query a sequence, so it needs no list of starts; empty
        sequences give zeros. Otherwise rows of padding are left as they are, so they start as
        zeros."""
        import torch

        decodes = batch.max_q == 1 and not self._invariant
        exact = decodes or not (batch.padded or batch.num_tokens != q.shape[0])
        out = (torch.empty if exact else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
        if decodes:
            self._call(q.unsqueeze(1), out.unsqueeze(1), batch, num_splits=self._parts(batch))
            return out
        # a kernel of its own serves one query, and two parts give other bits than one
        parts, longest = (1, max(batch.max_q, 2)) if self._invariant else (0, batch.max_q)
        self._call(
            q,
            out,
            batch,
            cu_seqlens_q=batch.q_start,
            max_seqlen_q=longest,
            num_splits=1 if self._splits == 1 else parts,
            pack_gqa=True if self._invariant else None,
        )
        return out

    def _call(self, q: "Tensor", out: "Tensor", batch: ForwardBatch, **how: Any) -> None:
        import torch

        spec = self._spec
        keys, values = self._handle.layout.split(self._handle.data)
        torch.ops.flash_attn_3.fwd(
            q,
            keys,
            values,
            out=out,
            seqused_k=batch.seq_len,
            page_table=self._table(batch),
            softmax_scale=spec.scale,
            is_causal=True,
            window_size_left=spec.window - 1 if spec.window else -1,
            softcap=spec.softcap,
            **how,
        )

    def _table(self, batch: ForwardBatch) -> "Tensor":
        """A table that holds no more keys than the window gets a kernel without windows, whose
        blocks of keys are others: in deterministic mode it is made wider."""
        import torch

        spec, table = self._spec, batch.page_table[self._spec.group]
        wanted = spec.window // spec.kv.page_size + 1 if spec.window and self._invariant else 0
        if table.shape[1] >= wanted:
            return table
        return torch.nn.functional.pad(table, (0, wanted - table.shape[1]))

    def _parts(self, batch: ForwardBatch) -> int:
        """Parts that a sequence may be cut into: how many it is, the kernel finds on the device."""
        if self._splits is not None:
            return self._splits
        programs = batch.row.shape[0] * self._spec.kv.num_kv_heads
        return min(max(-(-2 * self._processors // programs), 1), MAX_SPLITS)
