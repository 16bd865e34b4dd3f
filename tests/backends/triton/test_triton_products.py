"""The product kernels by Triton's interpreter, in float32: it has no matrix units and no bf16."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.triton.interpreter import ON_GPU  # isort: skip

from inferplane.hw import DeviceInfo, Reject, TorchDevice
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.quantization import (
    Scheme,
    dequantize,
    quantize,
    quantize_input,
    spread,
)
from inferplane.testing.op_run import OneOp
from inferplane_triton import launch, linear, quantized, tuning
from inferplane_triton.launch import Scratch, Tile
from inferplane_triton.packed import pack_nibbles, problem
from inferplane_triton.shared_memory import Operands, Room, fitted, shared_bytes

if ON_GPU:
    pytest.skip("tests/gpu has the conformance kit on the GPU", allow_module_level=True)

FP8 = "float8_e4m3fn"
INFO = DeviceInfo(backend="test", torch_device="cpu", name="test", arch="sm_90")
N, K = 192, 1024


def context() -> Any:
    """Of a device without instructions that the interpreter does not have."""
    return OneOp(TorchDevice(replace(INFO, arch="")))


def drawn(rows: int, seed: int) -> Tensor:
    """Inputs that FP8 holds exactly, with the largest magnitude in each group of 128 the same:
    the interpreter rounds FP8 wrongly where a value moves to the next power of two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, K, generator=generator).mul(30).to(torch.float8_e4m3fn).float()
    x[:, ::128] = 448.0
    return x / 256


def close(got: Tensor, want: Tensor, bound: float = 1e-5) -> None:
    assert not got.isnan().any()
    assert float((got - want).norm() / want.norm()) < bound


def wanted(x: Tensor, weight: Any, bias: Tensor | None, scheme: Scheme) -> Tensor:
    wide = x.double()
    if scheme.activation:
        values, scale = quantize_input(x, scheme, weight.input_scale)
        wide = values.double() * spread(scale.double(), scheme.activation_group, values)
    y = wide @ dequantize(weight, "float64").T
    return (y if bias is None else y + bias.double()).float()


SCHEMES = [
    Scheme(weight=FP8),
    Scheme(weight=FP8, rows=0, activation=FP8),
    Scheme(weight=FP8, activation=FP8, static=True),
    Scheme(weight=FP8, rows=128, group=128, activation=FP8, activation_group=128),
    Scheme(weight="int8"),
    Scheme(weight="int8", activation="int8"),
    Scheme(weight="int4", group=128),
    Scheme(weight="int4", group=128, asymmetric=True),
    Scheme(weight="int4", group=64, asymmetric=True),
    Scheme(weight="int4", group=32),
    Scheme(weight="int4"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_quantized_products_for_any_number_of_rows(scheme: Scheme) -> None:
    spec = LinearSpec(in_features=K, out_features=N, dtype="float32", bias=True, scheme=scheme)
    generator = torch.Generator().manual_seed(3)
    weight = quantize(
        torch.randn(N, K, generator=generator) / K**0.5, replace(scheme, static=False)
    )
    weight.scheme = scheme
    if scheme.weight == "int4" and scheme.group == 128:  # the scales of most checkpoints
        weight.scale = weight.scale.half().float()
    if scheme.static:
        weight.input_scale = torch.tensor([0.5 / 256])
    bias = torch.randn(N, generator=generator)
    bound = quantized.Linear().build(spec, context())
    assert bound.prepack is not None
    packed = bound.prepack(weight, bias)
    for rows in (1, 3, 20, 70, *((130,) if scheme.weight == "int4" else ())):
        x = drawn(rows, rows)
        close(bound.run(x, packed), wanted(x, weight, bias, scheme))
    assert bound.run(drawn(0, 0), packed).shape == (0, N)


@pytest.mark.parametrize("rows", [1, 20, 130])
def test_int4_inputs_that_are_no_whole_chunk(rows: int) -> None:
    width = 640
    scheme = Scheme(weight="int4", group=128, asymmetric=True)
    weight = quantize(torch.randn(N, width) / width**0.5, scheme)
    weight.scheme = scheme
    spec = LinearSpec(in_features=width, out_features=N, dtype="float32", scheme=scheme)
    bound = quantized.Linear().build(spec, context())
    assert bound.prepack is not None
    x = torch.full((rows + 1, width), float("nan"))  # what is after x is not to be read
    x[:rows] = torch.randn(rows, width)
    packed = bound.prepack(weight)
    close(bound.run(x[:rows], packed), wanted(x[:rows], weight, None, scheme))


@pytest.mark.parametrize("rows", [1, 3, 5, 40, 130])
def test_dense_products_by_tiles(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, w = torch.randn(rows, K, generator=generator), torch.randn(N, K, generator=generator)
    bias = torch.randn(N, generator=generator)
    want = (x.double() @ w.double().T + bias.double()).float()
    for product in (
        linear.own_or_library(N, K, context()),
        linear.invariant(N, K, context()),
    ):
        close(product(x, w, bias), want)
        place = torch.full((rows, N), float("nan"))
        assert product(x, w, bias, place) is place  # counters are as they were
        close(place, want)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("columns", [1, 193])
def test_invariant_products_take_any_number_of_columns(columns: int, rows: int) -> None:
    """The heads of vocabularies that a checkpoint added a token to"""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(rows, K, generator=generator)
    held = torch.full((columns + 1, K), float("nan"))  # what is after W is not to be used
    w = held[:columns].copy_(torch.randn(columns, K, generator=generator))
    bias = torch.randn(columns, generator=generator)
    product = linear.invariant(columns, K, context())
    close(product(x, w, bias), (x.double() @ w.double().T + bias.double()).float())


def test_parts_are_added_in_the_order_of_k() -> None:
    """By programs of their own or one after the other: the same bits."""
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(16, K, generator=generator), torch.randn(N, K, generator=generator)
    count = torch.zeros(16, dtype=torch.int32)
    results = []
    for cut in (Tile(64, 128, 4), Tile(64, 128, 4, serial=True), Tile(64, 128, 1)):
        y = torch.full((16, N), float("nan"))
        part = torch.full((4 * 16 * N,), float("nan"))
        launch.dense_tiles(x, w, None, y, cut, Scratch(part, count))
        results.append(y)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not count.any()


def test_invariant_tiles_keep_what_fixes_the_bits() -> None:
    shapes = [(4096, 4096), (6144, 4096), (28672, 4096), (1024, 2048), (192, 128), (192, 1152)]
    for columns, width in shapes:
        tiles = [tuning.invariant(rows, columns, width, True) for rows in range(1, 300)]
        assert len({tile.split for tile in tiles}) == 1
        for tile in tiles:
            assert tile.rows >= 64  # wgmma
            assert columns % tile.rows == 0
            assert width % tile.block == 0
            # parts begin at the same k whatever the block
            assert tile.chunk(width) == tiles[0].chunk(width)


@pytest.mark.parametrize(("group", "k"), [(32, 256), (64, 256), (128, 640), (0, 384)])
def test_nibbles_are_where_the_kernels_read_them(group: int, k: int) -> None:
    weight = quantize(torch.randn(64, k), Scheme(weight="int4", group=group))
    packed = pack_nibbles(weight)
    values = torch.stack([weight.values & 15, weight.values >> 4], 2).flatten(1)
    plane, chunks = packed.plane, packed.chunks
    numbers = packed.numbers.view(64, chunks, plane)
    for at in range(chunks * 4 * plane):
        found = (numbers[:, at // plane // 4, at % plane] >> (4 * (at // plane % 4))) & 15
        wanted = values[:, at] if at < k else torch.zeros(64, dtype=torch.uint8)
        assert torch.equal(found.to(torch.uint8), wanted)


def test_scales_of_fp16_stay_at_two_bytes() -> None:
    weight = quantize(torch.randn(64, 640), Scheme(weight="int4", group=128))
    exact = weight.scale
    weight.scale = exact * (1 + 2**-14)
    assert pack_nibbles(weight).scale.shape == (8, 64)
    weight.scale = exact
    packed = pack_nibbles(weight).scale
    assert packed.dtype == torch.int64
    planes = packed.T.contiguous().view(torch.float16).float()
    assert torch.equal(planes[:, :5], weight.scale)
    assert not planes[:, 5:].any()


@pytest.mark.parametrize(
    ("scheme", "code"),
    [
        (Scheme(weight="int4", group=32, activation="int8"), "feature"),
        (Scheme(weight="int4", group=16), "shape"),
        (Scheme(weight="int8", asymmetric=True), "feature"),
        (Scheme(weight="int8", group=32), "feature"),
        (Scheme(weight=FP8, activation="int8"), "feature"),
        (Scheme(weight=FP8, group=128), "feature"),
        (Scheme(weight=FP8, rows=128, group=128, activation=FP8), "feature"),
    ],
)
def test_rejected_schemes(scheme: Scheme, code: str) -> None:
    found = problem(scheme, K, N)
    assert found is not None
    assert found.code == code


def test_supports_names_the_reason() -> None:
    device = TorchDevice(INFO)
    dense = LinearSpec(in_features=K, out_features=N, dtype="bfloat16")
    fp8 = replace(dense, scheme=Scheme(weight=FP8, activation=FP8))
    logits = LogitsSpec(dim=K, vocab=N, dtype="bfloat16")
    ampere = TorchDevice(replace(INFO, arch="sm_80"))

    def code(impl: Any, spec: Any, where: Any = device) -> str:
        verdict = impl.supports(spec, where)
        return verdict.code if isinstance(verdict, Reject) else ""

    assert code(linear.Linear(), dense) == ""
    assert code(linear.Linear(), fp8) == "feature"
    assert code(linear.Linear(), replace(dense, dtype="float32")) == "dtype"
    assert code(linear.Linear(), replace(dense, in_features=100)) == "shape"
    assert code(linear.Logits(), replace(logits, vocab=1003)) == "shape"
    assert code(linear.InvariantLinear(), dense) == ""
    assert code(linear.InvariantLogits(), replace(logits, vocab=50257)) == ""
    assert code(linear.InvariantLogits(), logits, ampere) == "hardware"
    assert code(quantized.Linear(), fp8) == ""
    assert code(quantized.Linear(), dense) == "feature"
    assert code(quantized.Linear(), fp8, ampere) == "hardware"
    assert code(quantized.Logits(), replace(logits, scheme=Scheme(weight="int4"))) == ""


def compiled(program: str, target: str, cache: Path) -> list[list[str]]:
    """The words of each line that a program beside this file prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(program)), *target.split()],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    return [line.split() for line in run.stdout.splitlines()]


@pytest.mark.parametrize(
    "target", ["cuda 90 32", pytest.param("hip gfx942 64", marks=pytest.mark.slow)]
)
def test_kernels_compile(target: str, tmp_path: Path) -> None:
    found = compiled("compile_products.py", target, tmp_path)
    assert len(found) == 16
    if target.startswith("cuda"):
        for name, *parts in found:
            assert ("griddepcontrol.wait" in parts) == (name != "dequantize")
            assert ("wgmma" in parts) == (name in ("dense", "w8", "int4"))
            assert name != "dequantize" or "fma.rn.bf16x2" in parts
            assert ("prefetch.global.L2" in parts) == (name in ("dense", "w8", "int4"))


HOPPER, ADA, AMPERE, CDNA3 = "cuda 90 32", "cuda 89 32", "cuda 80 32", "hip gfx942 64"
ROOM = {HOPPER: 232448, ADA: 101376, AMPERE: 166912, CDNA3: 65536}
"""bytes of shared memory that a program may have"""


@pytest.mark.parametrize(
    "target", [HOPPER, *(pytest.param(each, marks=pytest.mark.slow) for each in list(ROOM)[1:])]
)
def test_no_product_takes_more_shared_memory_than_there_is(target: str, tmp_path: Path) -> None:
    found = compiled("compile_shared.py", f"{target} {ROOM[target]}", tmp_path)
    assert [name for name, *_ in found] == ["dense", "w8", "int4"]
    for _, kernels, *_ in found:
        assert int(kernels) > 0


def test_tiles_keep_as_many_stages_as_there_is_room_for() -> None:
    int4 = Operands(w=0.5, x=2, converted=True, dots=4)
    wanted = Tile(64, 4 * 64, warps=4, stages=6)
    step = 64 * 4 * 64 // 2 + 64 * 4 * 64 * 2  # W and x
    for room, stages in (
        (Room(1 << 20, "sm_90"), 6),
        (Room(237567, "sm_90"), 5),
        (Room(5 * step, "sm_89"), 6),  # a buffer less: nothing is read there while the next arrives
        (Room(5 * step - 1, "sm_89"), 5),
        (Room(step - 1, "sm_89"), 1),
    ):
        fit = fitted(wanted, 64, int4, room)
        assert replace(fit, stages=6) == wanted
        assert fit.stages == stages
        assert shared_bytes(fit, 64, int4, room) <= room.bytes
    small = fitted(wanted, 64, int4, Room(3 << 12, "sm_89"))
    assert (small.stages, small.most) == (1, 32)
    with pytest.raises(AssertionError, match="does not fit"):
        fitted(wanted, 64, int4, Room(1 << 10, "sm_89"))
