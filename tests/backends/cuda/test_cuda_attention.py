"""Attention by other packages: arguments, plans and refusals, with stand-ins of the packages."""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inferplane.hw import (
    CANONICAL,
    Bound,
    DeviceInfo,
    ForwardBatch,
    KVSpec,
    OpImpl,
    Reject,
    Support,
    TorchDevice,
)
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.attention_inputs import paged_batch
from inferplane.testing.op_run import Built, OneOp
from inferplane.testing.ops import check_op, conformance_cases
from inferplane_cuda.attention.fa3 import FlashAttention3
from inferplane_cuda.attention.fa4 import FlashAttention4
from inferplane_cuda.attention.flashinfer import FlashInfer, Plans, outdated
from tests.backends.cuda import stand_ins

OP = "attention.paged"
DEVICE = TorchDevice(DeviceInfo(backend="cuda", torch_device="cpu", name="GPU", arch="sm_90"))
SPEC = AttentionSpec(
    layer=0,
    group=0,
    num_heads=8,
    kv=KVSpec(num_kv_heads=2, head_dim=64, dtype="bfloat16", page_size=16),
    dtype="bfloat16",
    scale=0.125,
)


PACKAGES: dict[Any, Any] = {
    FlashAttention3: stand_ins.flash_attn_3,
    FlashAttention4: stand_ins.flash_attn_4,
    FlashInfer: stand_ins.flashinfer,
}


@pytest.fixture(params=PACKAGES)
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    kept = PACKAGES[request.param](monkeypatch)
    yield request.param()
    del kept


@dataclass
class Float32:
    """The implementation in float32, which it would refuse: what is compared is the work of the
    host, and that exactly."""

    inner: Any

    @property
    def name(self) -> str:
        return str(self.inner.name)

    def supports(self, spec: Any, device: Any) -> Support | Reject:
        found: Support | Reject = self.inner.supports(half(spec), device)
        return found

    def build(self, spec: Any, ctx: Any) -> Bound:
        made: Bound = self.inner.build(spec, ctx)
        return made


def half(spec: AttentionSpec) -> AttentionSpec:
    narrow = spec.kv.dtype if spec.kv.dtype != "float32" else "bfloat16"
    return replace(spec, dtype="bfloat16", kv=replace(spec.kv, dtype=narrow))


def single(spec: AttentionSpec) -> AttentionSpec:
    return replace(spec, dtype="float32", kv=replace(spec.kv, dtype="float32"))


def cases() -> list[AttentionSpec]:
    plain = single(SPEC)
    more = [
        replace(plain, group=1, kv=replace(plain.kv, page_size=8)),
        replace(plain, kv=replace(plain.kv, page_size=32), window=40),
        replace(plain, kv=replace(plain.kv, page_size=1), window=1),
        replace(plain, window=512),
        replace(plain, softcap=20.0, kv=replace(plain.kv, num_kv_heads=8)),
        replace(plain, kv=replace(plain.kv, head_dim=128)),
    ]
    batch = [replace(spec, determinism="batch") for spec in more]
    return [*conformance_cases(OP, ("float32",)), *more, *batch]


def test_conformance(impl: Any) -> None:
    taken = [
        spec
        for seed, spec in enumerate(cases())
        if isinstance(check_op(DEVICE, OP, Float32(impl), spec, seed), Support)
    ]
    assert len(taken) > 6
    assert {spec.window for spec in taken} >= {0, 1, 40, 512}
    modes = {"run"} if isinstance(impl, FlashInfer) else {"run", "batch"}
    assert {spec.determinism for spec in taken} == modes


def padded(batch: ForwardBatch, tokens: int, seqs: int, columns: int, decode: bool) -> ForwardBatch:
    """The same step in a bucket."""

    def ints(values: Any, size: int, fill: int = 0) -> torch.Tensor:
        values = list(values)
        return torch.tensor(values + [fill] * (size - len(values)), dtype=torch.int32)

    live, end = batch.num_seqs, batch.num_tokens
    starts = batch.host_q_start[: live + 1]
    wide = []
    for table in batch.page_table:
        wide.append(torch.zeros(seqs, columns, dtype=torch.int32))
        wide[-1][:live, : table.shape[1]] = table[:live]
    nothing = torch.zeros(tokens, dtype=torch.int32)
    return replace(
        batch,
        token_ids=nothing,
        position=nothing,
        slot=(nothing,) * len(wide),
        row=torch.zeros(seqs, dtype=torch.int32),
        q_start=ints(starts, seqs + 1, end),
        seq_len=ints(batch.host_seq_len[:live], seqs),
        page_table=tuple(wide),
        host_q_start=starts + [end] * (seqs - live),
        host_seq_len=batch.host_seq_len[:live] + [0] * (seqs - live),
        max_q=1 if decode else tokens,
        max_kv=columns * 16,
        padded=True,
    )


def steps(decode: bool, count: int) -> list[list[tuple[int, int]]]:
    """(q_len, seq_len) of the sequences of some steps; the first is empty, as when recording."""
    choose = random.Random(count)
    made: list[list[tuple[int, int]]] = [[]]
    for _ in range(count):
        decodes = [(1, choose.randint(1, 90)) for _ in range(choose.randint(1, 4))]
        lengths = [choose.randint(2, 12) for _ in range(0 if decode else choose.randint(1, 3))]
        made.append(decodes + [(n, n + choose.randint(0, 40)) for n in lengths])
    return made


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("window", [0, 24])
@pytest.mark.parametrize("mode", ["run", "batch"])
def test_steps_of_a_bucket(impl: Any, decode: bool, window: int, mode: Any) -> None:
    spec = replace(single(SPEC), window=window, determinism=mode, group=1)
    if isinstance(impl.supports(half(spec), DEVICE), Reject):
        assert mode == "batch" and isinstance(impl, FlashInfer)
        return
    built, reference = (Built(OP, one, spec, DEVICE) for one in (impl, TABLE[OP].reference))
    generator = torch.Generator().manual_seed(3)
    tokens, seqs = (7, 7) if decode else (64, 9)
    for lengths in steps(decode, 5):
        batch, kv = paged_batch(lengths or [(1, 1)], spec, generator)
        if not lengths:
            batch = replace(batch, num_seqs=0, num_tokens=0, host_q_start=[0], host_seq_len=[])
        for table, (count, length) in zip(batch.page_table[1], lengths, strict=False):
            if window:  # pages that no query sees any more are given back
                table[: max(length - count - window + 1, 0) // 16] = 0
        inputs = {
            "q": torch.randn(tokens, 8, 64, generator=generator),
            "batch": padded(batch, tokens, seqs, 8, decode),
            "sinks": None,
            "kv": kv,
        }
        have, want = (one(inputs).results[0] for one in (built, reference))
        torch.testing.assert_close(have, want, rtol=2e-5, atol=2e-5)
        assert not have[batch.num_tokens :].any()


def test_fa3_is_called_as_it_wants_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_ins.flash_attn_3(monkeypatch)
    generator = torch.Generator().manual_seed(0)

    def call(spec: AttentionSpec, lengths: list[tuple[int, int]], **how: Any) -> dict[str, Any]:
        batch, kv = paged_batch(lengths, spec, generator)
        q = torch.randn(batch.num_tokens, 8, 64, generator=generator)
        inputs = {"q": q, "batch": batch, "sinks": None, "kv": kv}
        Built(OP, FlashAttention3(**how), spec, DEVICE)(inputs)
        return calls.seen[-1]

    plain, window = single(SPEC), replace(single(SPEC), window=40)
    decode = call(plain, [(1, 40), (1, 3)])
    assert decode["q"].shape == (2, 1, 8, 64) and decode["cu_seqlens_q"] is None
    assert decode["seqused_k"].tolist() == [40, 3] and decode["softmax_scale"] == 0.125
    assert call(plain, [(1, 40)], splits=7)["num_splits"] == 7
    mixed = call(window, [(1, 40), (5, 9)])
    assert mixed["cu_seqlens_q"].tolist() == [0, 1, 6] and mixed["max_seqlen_q"] == 5
    assert (mixed["window_size_left"], mixed["is_causal"]) == (39, True)
    fixed = [
        call(replace(window, determinism="batch"), lengths)
        for lengths in ([(1, 40)], [(1, 3)], [(30, 90), (1, 200)][::-1])
    ]
    assert all((c["num_splits"], c["pack_gqa"]) == (1, True) for c in fixed)
    assert all(c["max_seqlen_q"] > 1 and c["page_table"].shape[1] > 2 for c in fixed)


def test_layers_that_attend_alike_share_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand_ins.flashinfer(monkeypatch)
    impl, context = FlashInfer(), OneOp(DEVICE)
    for layer in range(4):
        context.handles[layer] = stand_in_pages()
    specs = [replace(SPEC, layer=n, window=24 if n == 2 else 0) for n in range(4)]
    bound = [impl.build(spec, context) for spec in specs]
    assert [b.plan is not None for b in bound] == [True, False, True, False]
    assert len(made) == 2 and made[0].workspace[0] is made[1].workspace[0]
    other = OneOp(DEVICE, dict(context.handles))
    assert impl.build(specs[1], other).plan is not None
    assert len(made) == 3 and made[2].workspace[0] is not made[0].workspace[0]


def stand_in_pages() -> Any:
    from inferplane.hw import LayerKV

    return LayerKV(CANONICAL, SPEC.kv, CANONICAL.alloc(4, SPEC.kv, DEVICE))


def test_the_plan_of_flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand_ins.flashinfer(monkeypatch)
    plans = Plans(SPEC, DEVICE, None)
    batch, _ = paged_batch([(1, 17), (1, 16), (3, 33)], SPEC, torch.Generator(), padding=2)
    plans.plan(batch)
    plan = made[0].plans[-1]
    assert plan["qo_indptr"].tolist() == [0, 1, 2, 5, 5, 5, 7]  # two rows of padding
    assert plan["paged_kv_indptr"].tolist() == [0, 2, 3, 6, 6, 6, 6]
    assert plan["paged_kv_last_page_len"].tolist() == [1, 16, 1, 0, 0, 0]
    table = batch.page_table[0]
    listed = [*table[0, :2], *table[1, :1], *table[2, :3]]
    assert made[0].buffers[2].tolist() == [int(page) for page in listed]
    with pytest.raises(Exception, match="not known to the host"):
        plans.plan(replace(batch, host_exact=False))


def test_each_place_of_flashinfers_list_gets_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of two would stay is chance on a GPU, though not here. The last place, which nobody
    reads, takes all that is left over."""
    stand_ins.flashinfer(monkeypatch)
    plans, plain = Plans(SPEC, DEVICE, None), torch.Tensor.scatter_
    written: list[int] = []

    def scatter(target: Any, dim: int, places: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        written.extend(torch.bincount(places, minlength=len(target)).tolist())
        return plain(target, dim, places, pages)

    monkeypatch.setattr(torch.Tensor, "scatter_", scatter)
    batch, _ = paged_batch([(1, 16), (1, 33), (1, 17)], SPEC, torch.Generator())
    plans.plan(batch)
    assert written == [1] * 6 + [3]


def test_parts_of_sequences_fit_the_workspace_of_flashinfer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """8B: of the recorded steps, those with many sequences that prefill are not split."""
    made = stand_ins.flashinfer(monkeypatch)
    monkeypatch.setattr("inferplane_cuda.attention.flashinfer.processors", lambda device: 132)
    kv = replace(SPEC.kv, num_kv_heads=8, head_dim=128)
    plans = Plans(replace(SPEC, num_heads=32, kv=kv), DEVICE, None)
    found = {}
    for tokens, seqs in ((1, 1), (256, 256), (512, 512), (1024, 8), (1024, 64), (1024, 256)):
        batch, _ = paged_batch([(1, 1)], plans._spec, torch.Generator())
        plans.plan(padded(batch, tokens, seqs, 2, decode=tokens == seqs))
        found[tokens, seqs] = not made[-1].plans[-1]["disable_split_kv"]
    assert [size for size, splits in found.items() if not splits] == [(1024, 256)]


REASONS: list[tuple[dict[str, Any], str, tuple[str, str, str]]] = [
    ({}, "sm_90", ("", "", "")),
    ({}, "sm_100", ("made for sm_90, not sm_100", "", "")),
    ({}, "sm_80", ("made for sm_90, not sm_80", "no pages on sm_80", "")),
    ({}, "", ("made for sm_90, not this GPU", "no pages on this GPU", "made for sm_80 and later")),
    ({"dtype": "float32"}, "sm_90", ("float32 is not bfloat16 or float16",) * 3),
    ({"tree": True}, "sm_90", ("tree masks",) * 3),
    ({"sinks": True}, "sm_90", ("sinks in float32", "", "sinks")),
    ({"softcap": 30.0}, "sm_90", ("the package is built without softcap", "", "")),
    ({"window": 64}, "sm_90", ("", "", "")),
    ({"kv.opaque": True}, "sm_90", ("needs pages with strides",) * 3),
    ({"kv.page_size": 64}, "sm_90", ("64 is more than 32", "64 is more than 32", "")),
    ({"kv.head_dim": 80}, "sm_90", ("", "", "head_dim 80 is not one of (64, 128, 256)")),
    ({"kv.head_dim": 192}, "sm_100", ("made for", "head_dim 192", "head_dim 192 is not one")),
    ({"kv.head_dim": 60}, "sm_90", ("head_dim 60 is not a multiple of 8", "head_dim 60", "head_")),
    ({"kv.head_dim": 320}, "sm_90", ("head_dim 320, the package has up to [256]", "head", "head")),
    ({"kv.dtype": "float8_e4m3fn"}, "sm_90", ("pages in float8_e4m3fn", "pages in float8", "")),
    ({"kv.dtype": "int8"}, "sm_90", ("pages in int8",) * 3),
    ({"determinism": "batch"}, "sm_90", ("", "", "its tiles depend on the queries")),
]


@pytest.mark.parametrize(("changes", "arch", "reasons"), REASONS)
def test_what_they_take(
    changes: dict[str, Any],
    arch: str,
    reasons: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = TorchDevice(DeviceInfo(backend="cuda", torch_device="cpu", name="GPU", arch=arch))
    pages = {name[3:]: value for name, value in changes.items() if name.startswith("kv.")}
    rest = {name: value for name, value in changes.items() if not name.startswith("kv.")}
    spec = replace(SPEC, kv=replace(SPEC.kv, **pages), **rest)
    for (impl, install), reason in zip(PACKAGES.items(), reasons, strict=True):
        kept = install(monkeypatch)
        found = impl().supports(spec, device)
        assert isinstance(found, Reject) == bool(reason), found
        assert not isinstance(found, Reject) or found.reason.startswith(reason)
        del kept


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    impls: tuple[OpImpl, ...] = (FlashAttention3(), FlashAttention4(), FlashInfer())
    names = ("tokenspeed-fa3", "flash-attn-4", "flashinfer-python")
    monkeypatch.setattr("inferplane_cuda.attention.packages.find_spec", lambda name: None)
    for impl, package in zip(impls, names, strict=True):
        wanted = Reject("library", f"not installed: pip install {package}")
        assert impl.supports(SPEC, DEVICE) == wanted


def test_flashinfer_needs_a_compiler_or_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.flashinfer(monkeypatch)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("inferplane_cuda.attention.flashinfer.NVCC", Path("/none"))
    assert isinstance(FlashInfer().supports(SPEC, DEVICE), Support)
    monkeypatch.delitem(sys.modules, "flashinfer_jit_cache")
    found = FlashInfer().supports(SPEC, DEVICE)
    assert isinstance(found, Reject) and "no nvcc" in found.reason


def test_versions_of_flashinfer() -> None:
    assert outdated(None) is None and outdated("0.6.18.post1") is None and outdated("1.0") is None
    assert outdated("0.5.3") == Reject(
        "library", "0.5.3 is older than 0.6: pip install -U flashinfer-python"
    )


@pytest.mark.parametrize(
    ("flag", "changes", "reason"),
    [
        ("PAGEDKV", {}, "the package is built without pages"),
        ("VARLEN", {}, "the package is built without sequences of different lengths"),
        ("LOCAL", {"window": 8}, "the package is built without windows"),
        ("HDIM256", {"head_dim": 256}, "head_dim 256, the package has up to [192]"),
    ],
)
def test_builds_of_fa3(
    flag: str, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.flash_attn_3(monkeypatch, {f"FLASHATTENTION_DISABLE_{flag}": True})
    dim = changes.pop("head_dim", 64)
    spec = replace(SPEC, kv=replace(SPEC.kv, head_dim=dim), **changes)
    found = FlashAttention3().supports(spec, DEVICE)
    assert isinstance(found, Reject) and found.reason == reason


def test_a_package_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    context = OneOp(DEVICE, {0: stand_in_pages()})
    stand_ins.install(monkeypatch, "flash_attn_3")
    with pytest.raises(Exception, match="flash_attn_3 is installed but cannot be loaded"):
        FlashAttention3().build(SPEC, context)
    stand_ins.flashinfer(monkeypatch)
    monkeypatch.setattr(
        stand_ins.Wrapper, "plan", lambda *a, **b: (_ for _ in ()).throw(RuntimeError("ninja"))
    )
    with pytest.raises(Exception, match=r"its kernel cannot be made \(ninja\)"):
        FlashInfer().build(SPEC, context)
