"""Every reference op of the table passes the conformance check that backends must pass."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from inferplane.hw import DeviceInfo, Reject, StridedLayout, TorchDevice
from inferplane.hw.ops import TABLE
from inferplane.testing.op_cases import DTYPES
from inferplane.testing.ops import check_op, conformance_cases

HEAD_MAJOR = StridedLayout(id="head_major", order="htd")


def device(policy: Any = "dynamic") -> TorchDevice:
    return TorchDevice(
        DeviceInfo(backend="test", torch_device="cpu", name="cpu", shape_policy=policy)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", TABLE)
def test_reference_conforms(op: str, dtype: str) -> None:
    cases = conformance_cases(op, (dtype,))
    for index, spec in enumerate(cases):
        slow = op == "attention.paged" or getattr(spec, "scheme", None) is not None
        for seed in (index,) if slow else (index, 100 + index):
            verdict = check_op(device(), op, TABLE[op].reference, spec, seed)
            assert not isinstance(verdict, Reject)


@pytest.mark.parametrize("policy", ["bucketed", "static"])
def test_reference_attention_conforms_on_padded_shapes(policy: str) -> None:
    for seed, spec in enumerate(conformance_cases("attention.paged", ("float32",))):
        check_op(device(policy), "attention.paged", TABLE["attention.paged"].reference, spec, seed)


@pytest.mark.parametrize("op", [name for name, op in TABLE.items() if "kv" in str(op.spec)])
def test_reference_conforms_on_another_layout(op: str) -> None:
    for seed, spec in enumerate(conformance_cases(op, ("bfloat16",))):
        spec = replace(spec, kv=replace(spec.kv, layout=HEAD_MAJOR.id))
        check_op(device(), op, TABLE[op].reference, spec, seed, HEAD_MAJOR)


def test_batch_mode_holds_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for op in ("activation.glu", "linear", "norm.rms", "sampling.draw"):
            for seed, spec in enumerate(conformance_cases(op, ("float32",))):
                if spec.determinism == "batch":
                    check_op(device(), op, TABLE[op].reference, spec, seed)
    finally:
        torch.set_num_threads(before)
