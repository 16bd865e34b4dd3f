"""The packed linear layer against float64, and a row's bits in batches of all sizes."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from inferplane_xeon import kernels

MATRIX_PRODUCTS = True
DTYPES = [torch.bfloat16, torch.float32]
NORM = {torch.bfloat16: 4e-3, torch.float32: 2e-6}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind: torch.dtype = request.param
    return kind


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, want: Tensor, bound: float) -> None:
    assert torch.isfinite(got).all()
    assert (got.double() - want).norm() <= bound * want.norm()


SIZES = [
    (1, 576, 960),
    (2, 8, 3),
    (7, 577, 49),
    (8, 1536, 576),
    (33, 64, 1000),
    (100, 31, 48),
    (97, 450, 200),
]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_matches_float64(
    isa: str, dtype: torch.dtype, rows: int, inputs: int, outputs: int
) -> None:
    x = randn(1, rows, inputs + 3).to(dtype)[:, :inputs]
    weight, bias = randn(2, outputs, inputs).to(dtype), randn(3, outputs).to(dtype)
    packed = kernels.pack_linear(weight)
    want = x.double() @ weight.double().T
    out = torch.full((rows, outputs), float("nan"), dtype=dtype)
    close(kernels.linear(x, packed, out), want, NORM[dtype])
    close(kernels.linear(x, packed, out, bias=bias), want + bias.double(), NORM[dtype])
    wide = torch.full((rows, outputs), float("nan"))
    close(kernels.linear(x, packed, wide), want, 3e-6)
    capped = 30.0 * (want / 30.0).tanh()
    close(kernels.linear(x, packed, wide, softcap=30.0), capped, 3e-6)


def test_packed_padding_is_zero(isa: str, dtype: torch.dtype) -> None:
    packed = kernels.pack_linear(torch.ones(50, 7, dtype=dtype))
    assert packed.float().sum() == 350
    assert packed.numel() == 2 * 48 * (7 if dtype == torch.float32 else 8)


def test_a_view_of_weights_is_packed(isa: str, dtype: torch.dtype) -> None:
    weight = randn(1, 100, 40).to(dtype)
    assert torch.equal(
        kernels.pack_linear(weight[:, 8:24]), kernels.pack_linear(weight[:, 8:24].contiguous())
    )


def test_bits_of_a_row_do_not_depend_on_the_others(
    isa: str, dtype: torch.dtype, threads: ModuleType
) -> None:
    x, weight = randn(1, 70, 200).to(dtype), randn(2, 333, 200).to(dtype)
    packed = kernels.pack_linear(weight)
    whole = kernels.linear(x, packed, torch.empty(70, 333))
    for team in (1, 2, 5):
        threads.set_threads(team)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 64, 65):
            for first in (0, 1, 70 - rows):
                part = x[first : first + rows]
                got = kernels.linear(part, packed, torch.empty(rows, 333))
                assert torch.equal(got, whole[first : first + rows]), (team, rows, first)
