"""KV memory: layouts, the canonical form of pages, and what core may rely on."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from inferplane.hw import CANONICAL, DeviceInfo, KVSpec, LayerKV, StridedLayout, TorchDevice
from inferplane.hw.kv import from_stored, to_stored
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.kv import KVOpSpec
from inferplane.testing.op_run import OneOp

CPU = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="cpu"))
SPEC = KVSpec(num_kv_heads=3, head_dim=8, dtype="float32", page_size=4)
LAYOUTS = [
    StridedLayout(id=order, order=order) for order in map("".join, itertools.permutations("thd"))
]
PAGES = torch.tensor([4, 1, 3], dtype=torch.int32)


def canonical(count: int) -> torch.Tensor:
    return torch.randn(2, count, 4, 3, 8, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.id)
def test_pages_go_in_and_out_of_every_layout(layout: StridedLayout) -> None:
    data = layout.alloc(6, SPEC, CPU)
    assert not data.any()
    assert data.nbytes == 6 * layout.page_bytes(SPEC)
    pages = canonical(3)
    assert layout.import_pages(data, PAGES, pages) is data
    assert layout.export_pages(data, PAGES).equal(pages)
    k, v = layout.split(data)
    assert k.shape == v.shape == (6, 4, 3, 8)
    assert k[4].equal(pages[0, 0]) and v[3].equal(pages[1, 2])
    assert not k[[0, 2, 5]].any()
    k[0, 1, 2, 3] = 7.0  # a view
    assert layout.export_pages(data, torch.tensor([0]))[0, 0, 1, 2, 3] == 7.0


@pytest.mark.parametrize(
    ("a", "b"), list(itertools.permutations(LAYOUTS[:3], 2)), ids=lambda x: x.id
)
def test_pages_move_between_layouts_and_types(a: StridedLayout, b: StridedLayout) -> None:
    """As from one kind of device to another: through the canonical form."""
    half = replace(SPEC, dtype="bfloat16")
    source, target = a.alloc(5, SPEC, CPU), b.alloc(7, half, CPU)
    a.import_pages(source, PAGES, canonical(3))
    b.import_pages(target, torch.tensor([6, 2, 5]), a.export_pages(source, PAGES))
    moved = b.export_pages(target, torch.tensor([6, 2, 5]))
    assert moved.equal(canonical(3).bfloat16())


def test_only_equal_fingerprints_may_exchange_raw_pages() -> None:
    changed = [
        SPEC,
        replace(SPEC, num_kv_heads=2),
        replace(SPEC, head_dim=4),
        replace(SPEC, dtype="bfloat16"),
        replace(SPEC, dtype="int8"),
        replace(SPEC, page_size=8),
    ]
    prints = [layout.fingerprint(spec) for layout in LAYOUTS for spec in changed]
    assert len(set(prints)) == len(prints)
    assert CANONICAL.fingerprint(SPEC) == StridedLayout(id="other").fingerprint(SPEC)


def test_page_bytes_follow_the_type() -> None:
    assert CANONICAL.page_bytes(SPEC) == 2 * 4 * 3 * 8 * 4
    assert CANONICAL.page_bytes(replace(SPEC, dtype="float16")) == 2 * 4 * 3 * 8 * 2


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.id)
def test_int8_pages_go_in_and_out_of_every_layout_and_type(layout: StridedLayout) -> None:
    spec, pages = replace(SPEC, dtype="int8"), canonical(3)
    data = layout.alloc(6, spec, CPU)
    assert layout.page_bytes(spec) == 2 * 4 * 3 * (8 + 4)
    assert data.nbytes == 6 * layout.page_bytes(spec)
    layout.import_pages(data, PAGES, pages)
    rows = layout.export_pages(data, PAGES)
    values = from_stored(rows)
    step = pages.abs().amax(-1, keepdim=True) / 127
    assert values.shape == pages.shape
    assert ((values - pages).abs() <= step * 0.5001).all()
    assert (values - pages).norm() > 1e-3 * pages.norm()
    other = CANONICAL.alloc(6, spec, CPU)
    CANONICAL.import_pages(other, PAGES, rows)
    assert CANONICAL.export_pages(other, PAGES).equal(rows), "rows move as they are"
    wide = CANONICAL.alloc(6, SPEC, CPU)
    CANONICAL.import_pages(wide, PAGES, rows)
    assert CANONICAL.export_pages(wide, PAGES).equal(values)
    assert not from_stored(layout.export_pages(data, torch.tensor([0, 2, 5]))).any()


def test_rows_of_int8() -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([[127.0, -63.5, 0.5, 1.5], [0.0] * 4, [1.0, inf, 0, 0], [nan, 1, 0, 0]])
    rows = to_stored(x.bfloat16(), torch.int8)
    assert rows[:2, :4].tolist() == [[127, -64, 0, 2], [0] * 4], "ties to even"
    assert from_stored(rows)[:2].tolist() == [[127.0, -64.0, 0.0, 2.0], [0.0] * 4]
    assert from_stored(rows)[2:].isnan().all(), "what is not finite stays visible"
    exact = torch.tensor([127.0, -3.0, 64.0, 0.0]) * 2.0**-9
    assert from_stored(to_stored(exact, torch.int8)).equal(exact)


@pytest.mark.parametrize("inplace", [True, False])
def test_writes_are_in_place_only_where_the_device_allows_it(inplace: bool) -> None:
    info = replace(CPU.info, traits=replace(CPU.info.traits, inplace=inplace))
    context = OneOp(TorchDevice(info))
    handle = context.handles[0] = LayerKV(CANONICAL, SPEC, CANONICAL.alloc(3, SPEC, CPU))
    before = handle.data
    spec = KVOpSpec(layer=0, kv=SPEC)
    write = TABLE["kv.write"].reference.build(spec, context).run
    copy = TABLE["kv.copy"].reference.build(spec, context).run
    rows = torch.ones(2, 3, 8)
    write(rows, rows * 2, torch.tensor([5, 9], dtype=torch.int32))
    copy(torch.tensor([5], dtype=torch.int32), torch.tensor([0], dtype=torch.int32))
    assert (handle.data is before) == inplace
    assert bool(before.any()) == inplace
    k, v = CANONICAL.split(handle.data)
    assert k.sum() == 3 * 24 and v.sum() == 6 * 24
    assert k[0, 0].all() and k[1, 1].all() and k[2, 1].all()


def test_an_opaque_layout_is_refused_by_every_reference_that_needs_views() -> None:
    spec = KVOpSpec(layer=0, kv=replace(SPEC, opaque=True))
    for op in ("kv.write", "kv.gather", "kv.copy"):
        verdict = TABLE[op].reference.supports(spec, CPU)
        assert "strided" in getattr(verdict, "reason", "")


def test_float8_pages_round_and_cut_off_what_is_written() -> None:
    spec = KVSpec(num_kv_heads=1, head_dim=4, dtype="float8_e4m3fn", page_size=2)
    handle = LayerKV(CANONICAL, spec)
    handle.data = CANONICAL.alloc(3, spec, CPU)
    assert CANONICAL.page_bytes(spec) == handle.data[:, 0].numel() == 16
    context = OneOp(CPU, {0: handle})
    write = TABLE["kv.write"].reference.build(KVOpSpec(layer=0, kv=spec), context)
    k = torch.tensor([[[1000.0, -1000.0, 1.0625, 1.1875]]], dtype=torch.bfloat16)
    write.run(k, k / 2, torch.tensor([3], dtype=torch.int32))
    copy = TABLE["kv.copy"].reference.build(KVOpSpec(layer=0, kv=spec), context)
    copy.run(torch.tensor([3]), torch.tensor([4]))
    gather = TABLE["kv.gather"].reference.build(KVOpSpec(layer=0, kv=spec), context)
    keys, values = gather.run(torch.tensor([2, 1], dtype=torch.int32)).float()
    assert keys[[0, 3], 0].tolist() == [[448.0, -448.0, 1.0, 1.25]] * 2  # ties to even
    assert values[3, 0, 0] == 448.0
    assert not keys[1:3].any()
