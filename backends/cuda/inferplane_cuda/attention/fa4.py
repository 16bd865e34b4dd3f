"""attention.paged by FlashAttention-4, package flash_attn.cute: kernels written in CuTe DSL, which
are compiled when an engine is built.

They read all lengths on the device, so that steps are recorded like any other. On sm_90 they split
no sequence, so they suit prefill. Pages are gathered key by key; values behind a sequence's end
count as zeros.
"""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError
from inferplane.hw import Bound, BuildContext, Device, ForwardBatch, Reject, Support
from inferplane.hw.ops.attention import AttentionSpec
from inferplane_cuda.attention.packages import major, missing, untaken

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "flash_attn.cute"
ARCHITECTURES = (9, 10, 11)
LARGEST_PAGE = 32
"""pages as large as a tile of keys are read whole, with whatever lies behind the sequence's end"""
MANY_QUERIES = 4096
"""more than one tile holds: for fewer, another kernel is compiled"""


@dataclass(frozen=True, slots=True)
class FlashAttention4:
    name: str = "cuda.fa4"

    def supports(self, spec: AttentionSpec, device: Device) -> Support | Reject:
        problem = (
            missing(MODULE, "flash-attn-4") or untaken(spec, device) or self._untaken(spec, device)
        )
        if problem:
            return problem
        if spec.determinism == "batch":
            return Support(priority=40, invariance="batch", notes="never splits a sequence")
        return Support(priority=40, invariance="run", notes="FlashAttention-4")

    def _untaken(self, spec: AttentionSpec, device: Device) -> Reject | None:
        family, dim = major(device), spec.kv.head_dim
        if family not in ARCHITECTURES:
            return Reject("hardware", f"no pages on {device.info.arch or 'this GPU'}")
        if spec.kv.dtype != spec.dtype:
            return Reject("dtype", f"pages in {spec.kv.dtype}, the model is in {spec.dtype}")
        if dim % 8 or dim > 256 or (family > 9 and 128 < dim < 256):
            return Reject("shape", f"head_dim {dim}")
        if spec.kv.page_size > LARGEST_PAGE:
            return Reject("page_size", f"{spec.kv.page_size} is more than {LARGEST_PAGE}")
        return None

    def build(self, spec: AttentionSpec, ctx: BuildContext) -> Bound:
        try:
            made = _Attention(spec, ctx)
            made.compile()
        except DeviceError:
            raise
        except Exception as error:  # the compiler has exceptions of its own
            raise DeviceError(
                f"{MODULE} is installed but its kernel cannot be made ({error}): reinstall it, or "
                "take another --attention-backend"
            ) from error
        return Bound(run=made.run)


class _Attention:
    """One layer's attention."""

    def __init__(self, spec: AttentionSpec, ctx: BuildContext) -> None:
        self._spec = spec
        self._handle = ctx.kv(spec.layer)
        self._invariant = spec.determinism == "batch"
        self._torch_device = ctx.device.info.torch_device
        self._forward = partial(
            import_module(f"{MODULE}.interface")._flash_attn_fwd,
            softmax_scale=spec.scale,
            causal=True,
            softcap=spec.softcap,
            window_size_left=spec.window - 1 if spec.window else None,
            num_splits=1 if self._invariant or major(ctx.device) == 9 else 0,
        )

    def compile(self) -> None:
        """A kernel is compiled for each form of a step, before one of them is recorded."""
        import torch

        spec, kv, where = self._spec, self._spec.kv, self._torch_device
        shape = (1, kv.page_size, kv.num_kv_heads, kv.head_dim)
        pages = torch.zeros(shape, dtype=getattr(torch, kv.dtype), device=where)
        q = torch.zeros(1, spec.num_heads, kv.head_dim, dtype=pages.dtype, device=where)
        sinks = torch.zeros(spec.num_heads, device=where) if spec.sinks else None
        ones = torch.ones(1, dtype=torch.int32, device=where)
        starts = torch.arange(2, dtype=torch.int32, device=where)
        call = partial(
            self._call, pages=(pages, pages), table=ones[:, None] - 1, lengths=ones, sinks=sinks
        )
        call(q, torch.empty_like(q), starts=starts, longest=MANY_QUERIES)
        if not self._invariant:
            call(q, torch.empty_like(q), starts=starts, longest=1)
            call(q[:, None], torch.empty_like(q[:, None]))

    def run(self, q: "Tensor", batch: ForwardBatch, sinks: "Tensor | None" = None) -> "Tensor":
        """A step that only decodes has one query a sequence, so it needs no list of starts. Rows
        of padding are left as they are, so all start as zeros."""
        import torch

        decodes = batch.max_q == 1 and not self._invariant
        exact = not (batch.padded or decodes or batch.num_tokens != q.shape[0])
        out = (torch.empty if exact else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
        call = partial(
            self._call,
            pages=self._handle.layout.split(self._handle.data),
            table=batch.page_table[self._spec.group],
            lengths=batch.seq_len,
            sinks=sinks,
        )
        if decodes:
            call(q[:, None], out[:, None])
        else:
            longest = max(batch.max_q, MANY_QUERIES) if self._invariant else batch.max_q
            call(q, out, starts=batch.q_start, longest=longest)
        return out

    def _call(
        self,
        q: "Tensor",
        out: "Tensor",
        *,
        pages: "tuple[Tensor, Tensor]",
        table: "Tensor",
        lengths: "Tensor",
        sinks: "Tensor | None",
        starts: "Tensor | None" = None,
        longest: int | None = None,
    ) -> Any:
        return self._forward(
            q,
            *pages,
            cu_seqlens_q=starts,
            seqused_k=lengths,
            max_seqlen_q=longest,
            page_table=table,
            learnable_sink=sinks,
            out=out,
        )
