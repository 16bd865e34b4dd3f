"""Composites are their parts, and the parts are asked for as much as the whole."""

from dataclasses import replace
from typing import Any

import pytest

from inferplane.hw import Bound
from inferplane.hw.ops import TABLE
from inferplane.testing.op_cases import conformance_cases
from inferplane.testing.op_run import OneOp, cpu

COMPOSITES = [name for name, op in TABLE.items() if op.parts is not None]


class Listening(OneOp):
    """Notes which parts a decomposition binds."""

    def __init__(self) -> None:
        super().__init__(cpu())
        self.bound: list[tuple[str, Any]] = []

    def kv(self, layer: int) -> Any:
        return None

    def bind(self, op: str, spec: Any) -> Bound:
        self.bound.append((op, spec))
        return Bound(run=lambda *_: None)


@pytest.mark.parametrize("op", COMPOSITES)
def test_the_decomposition_binds_the_declared_parts(op: str) -> None:
    parts_of = TABLE[op].parts
    assert parts_of is not None
    for spec in conformance_cases(op, ("bfloat16",)):
        for strength in ("none", "run", "batch"):
            asked = replace(spec, determinism=strength)
            listening = Listening()
            TABLE[op].reference.build(asked, listening)
            assert tuple(listening.bound) == parts_of(asked)
            assert {part.determinism for _, part in listening.bound} == {strength}


def test_there_are_composites() -> None:
    single = ["qk_norm_rope_kvwrite", "norm.add_rms", "linear.glu"]
    assert [*single, "norm_linear", "norm_mlp"] == COMPOSITES
