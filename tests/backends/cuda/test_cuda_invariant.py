"""Which products deterministic mode has on a Hopper GPU. No GPU: nothing is multiplied there."""

from typing import Any

import pytest
import torch

import tests.backends.triton.interpreter  # noqa: F401  # isort: skip  (before any kernel)

from inferplane.errors import DeviceError
from inferplane.hw import DeviceInfo, TorchDevice
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.resolver import Resolver
from inferplane_cuda import invariant
from inferplane_cuda.linear import Linear, Logits
from inferplane_triton import linear

HOPPER = TorchDevice(DeviceInfo(backend="cuda", torch_device="cpu", name="GPU", arch="sm_90"))
IMPLS: list[tuple[str, Any]] = [
    *(("linear", each()) for each in (Linear, invariant.Linear, linear.InvariantLinear)),
    *(("logits", each()) for each in (Logits, invariant.Logits, linear.InvariantLogits)),
]
LIBRARY, OWN, REFERENCE = "cuda.cublaslt", "triton.linear_invariant", "reference"


def chosen(op: str, spec: Any) -> str:
    return Resolver(device=HOPPER, impls=IMPLS).resolve(op, spec).chosen.name


@pytest.mark.parametrize(
    ("vocab", "name"),
    [
        *((vocab, LIBRARY) for vocab in (128_256, 151_936, 49_152, 32_000)),
        *((vocab, OWN) for vocab in (50_257, 32_001, 151_665)),
    ],
)
def test_vocabularies(vocab: int, name: str) -> None:
    spec = LogitsSpec(dim=1024, vocab=vocab, dtype="bfloat16", determinism="batch")
    assert chosen("logits", spec) == name


@pytest.mark.parametrize(
    ("width", "columns", "name"),
    [(4096, 28672, LIBRARY), (576, 192, LIBRARY), (1024, 300, OWN), (99, 50, REFERENCE)],
)
def test_weights(width: int, columns: int, name: str) -> None:
    spec = LinearSpec(
        in_features=width, out_features=columns, dtype="bfloat16", determinism="batch"
    )
    assert chosen("linear", spec) == name


@pytest.mark.parametrize(("first", "rows"), [(0, 3), (22, 1), (40, 100)])
def test_rows_are_tried_from_the_middle_of_a_batch(
    first: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product that errs on one slice is found out."""
    whole = torch.nn.functional.linear

    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = whole(x, weight)
        sliced = x.storage_offset() == first * x.shape[1] and len(x) == rows
        return y + 1 if sliced else y

    monkeypatch.setattr(invariant, "MOST_ROWS", 200)
    monkeypatch.setattr(invariant, "_proven", set())
    weight = torch.zeros(64, 64)
    invariant.prove("linear", weight)
    monkeypatch.setattr(invariant, "_proven", set())
    monkeypatch.setattr(torch.nn.functional, "linear", product)
    with pytest.raises(DeviceError, match=rf"64 x 64: {rows} rows from row {first} on .*logits="):
        invariant.prove("logits", weight)
