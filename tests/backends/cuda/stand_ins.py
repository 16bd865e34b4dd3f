"""Stand-ins of flash_attn_3, flash_attn.cute and flashinfer: their signatures, attention in torch.

They take what the real ones take and behave as these do where it matters: values behind the end of
a sequence count as zeros, other keys of a page are used and masked; which kernel computes, and so
the order of the sums, depends on what it is called with; recorded steps read fixed buffers.
"""

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch

SCHEMA = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, "
    "Tensor? q_v=None, Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? "
    "cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None, Tensor? "
    "seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None, Tensor? page_table=None, "
    "Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None, Tensor? "
    "rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? "
    "k_descale=None, Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, "
    "int window_size_left=-1, int window_size_right=-1, int attention_chunk=0, float softcap=0.0, "
    "bool is_rotary_interleaved=False, Tensor? scheduler_metadata=None, int num_splits=0, bool? "
    "pack_gqa=None, int sm_margin=0, Tensor? sinks=None) -> (Tensor(out!), Tensor, Tensor, Tensor)"
)
"""of tokenspeed-fa3 3.0.0.post20260810"""
FLAGS = {"FLASHATTENTION_DISABLE_SOFTCAP": True, "FLASHATTENTION_DISABLE_HDIM96": True}


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    """A module of this name for as long as the test runs."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    left: int,
    softcap: float,
    block: int,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """q[n, Hq, D] at `position` [n] over k and v[S, Hkv, D], `block` keys at a time. Sums are over
    products, not by matrix products, so that a query's bits do not depend on the others."""
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1).transpose(0, 1).float() for x in (k, v))  # [Hq, S, D]
    peak = torch.full((*q.shape[:2], 1), -1e30)
    total, acc = torch.zeros_like(peak), torch.zeros(q.shape)
    if sinks is not None:
        peak, total = sinks[:, None].expand_as(peak), torch.ones_like(peak)
    at = position[:, None, None]
    for start in range(0, int(position.max()) + 1 if len(position) else 0, block):
        kb, vb = (x[:, start : start + block] for x in (k, v))
        key = torch.arange(start, start + kb.shape[1])
        score = (q.float()[:, :, None] * kb).sum(-1) * scale  # [n, Hq, block]
        if softcap:
            score = softcap * (score / softcap).tanh()
        seen = (key <= at) & ((left < 0) | (key >= at - left))
        score = torch.where(seen, score, -torch.inf)
        higher = torch.maximum(peak, score.amax(-1, keepdim=True))
        weight, shrink = (score - higher).exp(), (peak - higher).exp()
        total = total * shrink + weight.sum(-1, keepdim=True)
        acc = acc * shrink + (weight[..., None] * vb).sum(-2)
        peak = higher
    return torch.where(total > 0, acc / total.clamp(min=1e-30), 0.0).to(q.dtype)


def gather(pages: torch.Tensor, table: torch.Tensor, length: int, zeros: bool) -> torch.Tensor:
    """Rows [S, Hkv, D] of the pages in `table`; behind `length` zeros, or what is there."""
    found = pages[table.long()].flatten(0, 1).clone()
    if zeros:
        found[length:] = 0
    return found


@dataclass
class Calls:
    """What the kernels were called with."""

    seen: list[dict[str, Any]] = field(default_factory=list)


def flash_attn_3(monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool] = FLAGS) -> Calls:
    calls = Calls()
    install(monkeypatch, "flash_attn_3")
    install(monkeypatch, "flash_attn_3._C")
    install(monkeypatch, "flash_attn_config", CONFIG={"build_flags": flags})
    library = torch.library.Library("flash_attn_3", "DEF")  # undone when it is collected
    library.define(SCHEMA)

    options = torch._C.parse_schema(f"flash_attn_3::{SCHEMA}").arguments[3:]

    def fwd(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
        given = {option.name: option.default_value for option in options}
        given |= dict(zip(given, rest, strict=False))  # defaults at the end are left out
        calls.seen.append(given | {"q": q})
        _fa3(q, k, v, given)
        empty = q.new_zeros(0)
        return given["out"], empty, empty, empty

    library.impl("fwd", fwd, "CPU")
    monkeypatch.setattr(calls, "library", library, raising=False)
    return calls


def _fa3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: dict[str, Any]) -> None:
    table, lengths = given["page_table"], given["seqused_k"]
    left, longest = given["window_size_left"], given["max_seqlen_q"] or 1
    assert given["sinks"] is None and given["is_causal"]
    if left >= table.shape[1] * k.shape[1] - 1:
        left = -1
    single = longest == 1 and left < 0 and not 64 < q.shape[-1] <= 128
    block = 24 if left >= 0 else 40 if single else 32
    if given["num_splits"] != 1 or not given["pack_gqa"]:
        block += 4 * (lengths.shape[0] % 3)  # the package chooses
    _sequences(q, k, v, given, left, longest, block)


def flash_attn_4(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """flash_attn.cute of flash-attn-4 4.0.0b36 on sm_90"""
    calls = Calls()

    def _flash_attn_fwd(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor | None = None,
        seqused_k: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        page_table: torch.Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        softcap: float | None = None,
        window_size_left: int | None = None,
        learnable_sink: torch.Tensor | None = None,
        num_splits: int = 1,
        out: torch.Tensor | None = None,
    ) -> Any:
        given = dict(locals())
        calls.seen.append(given)
        assert causal and num_splits == 1, "SplitKV not supported on SM 9.0"
        shared, longest = q.shape[-2] // k.shape[-2], max_seqlen_q or 1
        block = 32 if longest * shared > 192 else 40 if cu_seqlens_q is None else 48
        left = -1 if window_size_left is None else window_size_left
        _sequences(q, k, v, given, left, longest, block)
        return out, None, None, None, None

    package = install(monkeypatch, "flash_attn")
    package.__path__ = []
    install(monkeypatch, "flash_attn.cute")
    install(monkeypatch, "flash_attn.cute.interface", _flash_attn_fwd=_flash_attn_fwd)
    return calls


def _sequences(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    given: dict[str, Any],
    left: int,
    longest: int,
    block: int,
) -> None:
    table, lengths, out = given["page_table"], given["seqused_k"], given["out"]
    for tensor in (q, k, v, table):
        assert tensor.stride(-1) == 1
    assert out.is_contiguous()
    assert k.shape[1] < 64, "such pages would be read whole"
    starts, sinks = given["cu_seqlens_q"], given.get("learnable_sink")
    batched = starts is None
    for b, length in enumerate(lengths.tolist()):
        span = slice(b, b + 1) if batched else slice(starts[b], starts[b + 1])
        queries = q[b] if batched else q[span]
        assert len(queries) <= longest
        held = -(-length // k.shape[1])
        keys = gather(k, table[b][:held], length, zeros=False)
        values = gather(v, table[b][:held], length, zeros=True)
        position = length - len(queries) + torch.arange(len(queries))
        scale, softcap = given["softmax_scale"], given["softcap"]
        result = rows(queries, keys, values, position, scale, left, softcap, block, sinks)
        (out[b] if batched else out[span]).copy_(result)


class Wrapper:
    """flashinfer.BatchPrefillWithPagedKVCacheWrapper of 0.6.18, backend fa2"""

    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: torch.Tensor | None = None,
        paged_kv_indptr_buf: torch.Tensor | None = None,
        paged_kv_indices_buf: torch.Tensor | None = None,
        paged_kv_last_page_len_buf: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert (kv_layout, backend) == ("NHD", "fa2")
        self.fixed = use_cuda_graph
        self.buffers: Any = [
            qo_indptr_buf,
            paged_kv_indptr_buf,
            paged_kv_indices_buf,
            paged_kv_last_page_len_buf,
        ]
        assert all(b is not None for b in self.buffers) == use_cuda_graph
        self.rows: int | None = None
        self.planned: dict[str, Any] = {}
        self.recorded: list[Any] | None = None
        self.plans: list[dict[str, Any]] = []

    def reset_workspace_buffer(
        self, float_workspace_buffer: torch.Tensor, int_workspace_buffer: torch.Tensor
    ) -> None:
        self.workspace = float_workspace_buffer, int_workspace_buffer

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        disable_split_kv: bool = False,
    ) -> None:
        given = dict(locals())
        assert causal and sm_scale is not None
        arrays = [qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len]
        assert all(a.dtype == torch.int32 for a in arrays)
        self.last = int(qo_indptr[-1])
        if self.fixed:
            self.rows = self.last if self.rows is None else self.rows
            assert self.last <= self.rows, "more rows than the first plan had"
            assert len(qo_indptr) == len(self.buffers[0])
            assert int(paged_kv_indptr[-1]) <= len(self.buffers[2])
            for buffer, new in zip(self.buffers, arrays, strict=True):
                buffer[: len(new)].copy_(new)
        else:
            assert len(paged_kv_indices) == int(paged_kv_indptr[-1])
            self.buffers = arrays
        self.planned = given
        self.plans.append(given)

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: tuple[torch.Tensor, torch.Tensor],
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert q.shape[0] == self.last, "not the rows that were planned"
        plan, (keys, values) = self.planned, paged_kv_cache
        assert (q.dtype, keys.dtype) == (plan["q_data_type"], plan["kv_data_type"])
        assert q.shape[1:] == (plan["num_qo_heads"], plan["head_dim_qk"])
        assert keys.shape[1:] == (plan["page_size"], plan["num_kv_heads"], plan["head_dim_qk"])
        assert keys.stride() == values.stride()
        if self.fixed:
            now = [b.data_ptr() for b in self.buffers] + [plan["disable_split_kv"]]
            assert self.recorded in (None, now), "a recording reads other memory"
            self.recorded = now
        out = torch.zeros_like(q) if out is None else out
        starts, first, indices, last = (b.tolist() for b in self.buffers)
        for b, (begin, end) in enumerate(pairwise(starts)):
            table = torch.tensor(indices[first[b] : first[b + 1]], dtype=torch.int32)
            length = (len(table) - 1) * plan["page_size"] + last[b] if len(table) else 0
            position = length - (end - begin) + torch.arange(end - begin)
            out[begin:end] = rows(
                q[begin:end],
                gather(keys, table, length, zeros=False).to(q.dtype),
                gather(values, table, length, zeros=True).to(q.dtype),
                position if length else torch.full_like(position, -1),
                plan["sm_scale"],
                plan["window_left"],
                plan["logits_soft_cap"] or 0.0,
                32,
            )
        return out


def flashinfer(monkeypatch: pytest.MonkeyPatch) -> list[Wrapper]:
    """The package; the list gets every wrapper that is made."""
    made: list[Wrapper] = []

    def wrapper(*args: Any, **named: Any) -> Wrapper:
        made.append(Wrapper(*args, **named))
        return made[-1]

    install(monkeypatch, "flashinfer", BatchPrefillWithPagedKVCacheWrapper=wrapper)
    install(monkeypatch, "flashinfer_jit_cache")
    return made
