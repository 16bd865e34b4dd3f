"""Matrix tiles by emulation: the instructions' own arithmetic, and what has none of them."""

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from inferplane.hw.quantization import Scheme, quantize
from inferplane_xeon import kernels, quantized
from tests.backends.xeon.paged import Shape, attend, make


@pytest.fixture
def emulated(library: ModuleType) -> Iterator[ModuleType]:
    before = library.isa()
    try:
        library.set_isa("amx_emulated")
    except ValueError as error:
        pytest.skip(str(error))
    yield library
    library.set_isa(before)


def product(x: list[float], weight: list[float]) -> float:
    a, b = (torch.tensor([values], dtype=torch.bfloat16) for values in (x, weight))
    return float(kernels.linear(a, kernels.pack_linear(b), torch.empty(1, 1)))


def test_even_and_odd_inputs_are_summed_apart(emulated: ModuleType) -> None:
    """TDPBF16PS: two sums over a tile's inputs, then their sum, to the result. The second 1 is
    lost beside 2^24, whose neighbour is 2 away; those in the other sum are not."""
    assert product([4096.0, 1.0, 1.0, 1.0], [4096.0, 1.0, 1.0, 1.0]) == 2.0**24 + 2
    emulated.set_isa("avx512_bf16")
    assert product([4096.0, 1.0, 1.0, 1.0], [4096.0, 1.0, 1.0, 1.0]) == 2.0**24


@pytest.mark.parametrize(("places", "lost"), [((32, 64), True), ((32, 34), False)])
def test_each_step_of_32_inputs_is_added_to_the_result(
    emulated: ModuleType, places: tuple[int, int], lost: bool
) -> None:
    x = [4096.0] + [0.0] * 95
    for place in places:
        x[place] = 1.0
    assert product(x, [4096.0] + [1.0] * 95) == 2.0**24 + (0 if lost else 2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_subnormals_count_as_zero(emulated: ModuleType, sign: float) -> None:
    assert product([sign * 2.0**-70], [2.0**-70]) == 0.0  # the product is one
    assert product([sign * 2.0**-130], [2.0**100]) == 0.0  # an input is one
    assert product([sign * 2.0**-60], [2.0**-60]) == sign * 2.0**-120


def made_by(library: ModuleType, isa: str) -> list[Tensor]:
    """Dense, int8 and int4 products and attention, on the tiles of `isa`."""
    library.set_isa(isa)
    draw = torch.Generator().manual_seed(0)
    made = []
    for rows, inputs in ((1, 8), (3, 576), (16, 72), (17, 64), (40, 200), (99, 456)):
        x = torch.randn(rows, inputs, generator=draw).bfloat16()
        weight = torch.randn(96, inputs, generator=draw)
        packed = kernels.pack_linear(weight.bfloat16())
        made.append(kernels.linear(x, packed, torch.empty(rows, 96)))
        for kind, group in (("int8", 0), ("int4", 0), ("int8", 8), ("int4", 8)):
            scheme = Scheme(weight=kind, group=group, activation="int8")
            quantized_weight = quantized.pack(quantize(weight, scheme), "bfloat16")
            made.append(quantized.quant_linear(x, quantized_weight, torch.empty(rows, 96)))
    seqs = make(Shape(heads=9, kv_heads=3, dim=64), [300], seed=1)
    return made + attend(seqs, [(0, 200, 300)]) + attend(seqs, [(0, 299, 300)])


def test_the_processor_gives_the_bits_of_its_emulation(emulated: ModuleType) -> None:
    if "amx" not in emulated.isas():
        pytest.skip("this processor has no AMX")
    pairs = zip(made_by(emulated, "amx"), made_by(emulated, "amx_emulated"), strict=True)
    for number, (real, told) in enumerate(pairs):
        assert torch.equal(real, told), number


PANELS = [(64, 64, 48), (65, 456, 50), (131, 1544, 150), (300, 72, 500), (600, 1000, 20)]


@pytest.mark.parametrize("tiles", ["amx_emulated", "amx"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), PANELS)
def test_many_rows_have_the_bits_of_few(
    emulated: ModuleType, threads: ModuleType, tiles: str, rows: int, inputs: int, outputs: int
) -> None:
    """Panels (tile_panels.h), however the work is divided, beside batches of 30 rows."""
    if tiles not in (*threads.isas(), "amx_emulated"):
        pytest.skip("this processor has no AMX")
    threads.set_isa(tiles)
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=draw).bfloat16()
    weight = torch.randn(-(-outputs // 48) * 96, inputs, generator=draw)  # blocks of gates and ups
    dense = kernels.pack_linear(weight.bfloat16())
    schemes = [Scheme(weight="int8", asymmetric=a, activation="int8") for a in (False, True)]
    int8 = [quantized.pack(quantize(weight, scheme), "bfloat16") for scheme in schemes]

    def made(rows: Tensor) -> list[Tensor]:
        outs = [torch.empty(len(rows), n).bfloat16() for n in (len(weight), outputs) * 3]
        return [
            kernels.linear(rows, dense, outs[0]),
            kernels.linear(rows, dense, outs[1], glu="silu"),
            quantized.quant_linear(rows, int8[0], outs[2]),
            quantized.quant_linear(rows, int8[0], outs[3], glu="silu"),
            quantized.quant_linear(rows, int8[1], outs[4]),
            quantized.quant_linear(rows, int8[1], outs[5], glu="silu"),
        ]

    few = [torch.cat(parts) for parts in zip(*map(made, x.split(30)), strict=True)]
    for team in (1, 2, 7):
        threads.set_threads(team)
        for number, (got, want) in enumerate(zip(made(x), few, strict=True)):
            assert torch.equal(got, want), (team, number)


def test_a_product_of_no_rows(emulated: ModuleType) -> None:
    packed = kernels.pack_linear(torch.ones(50, 64, dtype=torch.bfloat16))
    nothing: Tensor = torch.empty(0, 64, dtype=torch.bfloat16)
    assert kernels.linear(nothing, packed, torch.empty(0, 50)).shape == (0, 50)


def test_emulation_is_never_chosen(library: ModuleType) -> None:
    assert "amx_emulated" not in library.isas()
    assert library.isa() == library.isas()[0]


FENCED = """
import ctypes, mmap, torch
from inferplane.hw.quantization import Scheme, quantize
from inferplane_xeon import kernels, quantized

fences = []

def fenced(like):  # its copy, with no memory behind its last byte
    size = like.numel() * like.element_size()
    pages = -(-size // 4096) * 4096
    memory = mmap.mmap(-1, pages + 4096)
    fences.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages), 4096, 0) == 0
    made = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=pages - size)
    return made.view(like.dtype).view(like.shape).copy_(like)

kernels.library().set_isa("amx_emulated")
for rows in (1, 5, 15, 16, 17, 31, 32, 33, 47, 50, 64, 99):
    for inputs in (8, 32, 40, 72):
        x = fenced(torch.randn(rows, inputs).bfloat16())
        packed = fenced(kernels.pack_linear(torch.randn(50, inputs).bfloat16()))
        kernels.linear(x, packed, torch.empty(rows, 50))
        for kind in ("int8", "int4"):
            weight = quantize(torch.randn(50, inputs), Scheme(weight=kind, activation="int8"))
            packed = quantized.pack(weight, "bfloat16")
            packed.data = fenced(packed.data)
            quantized.quant_linear(x, packed, torch.empty(rows, 50))
print("done")
"""


def test_nothing_beyond_rows_and_weights_is_read(emulated: ModuleType) -> None:
    done = subprocess.run([sys.executable, "-c", FENCED], capture_output=True, text=True)
    assert done.stdout == "done\n", (done.returncode, done.stderr)
