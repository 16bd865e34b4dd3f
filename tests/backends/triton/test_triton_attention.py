"""attention.paged by Triton's interpreter through the conformance check, in float32: it has no
matrix units and no bf16."""

from pathlib import Path

import pytest

from tests.backends.triton.interpreter import DEVICE, ON_GPU  # isort: skip

from inferplane.hw import Reject
from inferplane.testing.ops import check_op, conformance_cases
from inferplane_triton.attention import PagedAttention, Tiles
from tests.backends.triton.test_triton_products import CDNA3, HOPPER, ROOM, compiled

if ON_GPU:
    pytest.skip("tests/gpu has the conformance kit on the GPU", allow_module_level=True)

# numpy takes the logarithm of sums that are not used where they are zero
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
TREES = [s for s in conformance_cases("attention.paged", ("float32",)) if s.tree]


@pytest.mark.parametrize("index", range(len(TREES)))
def test_tree_masks(index: int) -> None:
    verdict = check_op(DEVICE, "attention.paged", PagedAttention(), TREES[index], seed=index)
    assert not isinstance(verdict, Reject)


@pytest.mark.parametrize("determinism", ["run", "batch"])
def test_trees_of_several_tiles(determinism: str) -> None:
    spec = next(s for s in TREES if s.window and s.determinism == determinism)
    small = PagedAttention(prefill=Tiles(rows=16, block=16))
    assert not isinstance(check_op(DEVICE, "attention.paged", small, spec, seed=9), Reject)


@pytest.mark.parametrize(
    "target", [pytest.param(each, marks=pytest.mark.slow) for each in (HOPPER, CDNA3)]
)
def test_kernels_compile_and_fit(target: str, tmp_path: Path) -> None:
    found = compiled("compile_attention.py", f"{target} {ROOM[target]}", tmp_path)
    assert [name for name, *_ in found] == ["tiled", "split", "merge"]
