"""Every implementation that the accelerator's packages bring, through the conformance check."""

import pytest

from inferplane.hw import Device, Reject
from inferplane.plugins import Plugins, open_device
from inferplane.testing.ops import check_op, conformance_cases

pytestmark = pytest.mark.gpu


def test_every_implementation_conforms(backend: str) -> None:
    plugins = Plugins()
    device: Device = open_device(plugins, backend)[0]
    checked, failures = 0, []
    for op, impl in plugins.op_impls(device):
        for index, spec in enumerate(conformance_cases(op)):
            try:
                verdict = check_op(device, op, impl, spec, seed=index)
            except Exception as error:
                failures.append(f"{impl.name} {spec}: {type(error).__name__}: {error}"[:600])
                continue
            checked += not isinstance(verdict, Reject)
    print(f"{checked} cases checked, {len(failures)} failed")
    assert not failures, "\n".join(failures)
    assert checked > 0
