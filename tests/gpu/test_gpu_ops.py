"""Every implementation that the accelerator's packages bring, through the conformance check."""

import pytest

from inferplane.hw import Device, Reject
from inferplane.hw.ops import TABLE
from inferplane.plugins import Plugins, open_device
from inferplane.testing.ops import check_op, conformance_cases

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("op", TABLE)
def test_every_implementation_conforms(backend: str, op: str, dtype: str) -> None:
    plugins = Plugins()
    device: Device = open_device(plugins, backend)[0]
    impls = [impl for name, impl in plugins.op_impls(device) if name == op]
    if not impls:
        pytest.skip(f"{op} runs by reference on {device.info.name}")
    failures = []
    for impl in impls:
        taken = 0
        for index, spec in enumerate(conformance_cases(op, (dtype,))):
            try:
                verdict = check_op(device, op, impl, spec, seed=index)
            except Exception as error:
                failures.append(f"{impl.name} {spec}: {type(error).__name__}: {error}"[:600])
                continue
            taken += not isinstance(verdict, Reject)
        print(f"{impl.name}: {taken} specs")
    assert not failures, f"{len(failures)} failed\n" + "\n".join(failures)
