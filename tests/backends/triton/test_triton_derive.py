"""batch.derive by Triton's interpreter through the conformance check."""

import pytest

from tests.backends.triton.interpreter import DEVICE  # isort: skip

from inferplane.hw import Reject
from inferplane.hw.ops.derive import DeriveSpec
from inferplane.testing.ops import check_op
from inferplane_triton.derive import Derive


@pytest.mark.parametrize("seed", range(8))
def test_it_conforms(seed: int) -> None:
    spec = DeriveSpec(page_size=(8, 16)[seed % 2])
    assert not isinstance(check_op(DEVICE, "batch.derive", Derive(), spec, seed), Reject)


def test_long_prompts_and_tables_take_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferplane_triton.derive.BLOCK", 4)
    for seed in range(4):
        verdict = check_op(DEVICE, "batch.derive", Derive(), DeriveSpec(page_size=8), seed)
        assert not isinstance(verdict, Reject)


def test_tables_that_are_not_written_in_place_are_rejected() -> None:
    verdict = Derive().supports(DeriveSpec(page_size=8, inplace=False), DEVICE)
    assert isinstance(verdict, Reject)
    assert verdict.code == "feature"
