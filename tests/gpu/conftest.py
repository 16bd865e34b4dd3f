"""The accelerator of this machine, or a skip that says why there is none."""

import pytest

from inferplane.hw import Device
from inferplane.plugins import BACKENDS, Plugins


def _accelerator() -> tuple[str, str]:
    """(backend, "") or ("", why not)"""
    plugins = Plugins()
    reasons = []
    for loaded in plugins.load_all(BACKENDS):
        if loaded.info is None or not loaded.info.is_accelerator:
            continue
        probed = plugins.probe(loaded)
        if probed.devices:
            return loaded.name, ""
        reasons.append(probed.line().strip())
    return "", "; ".join(reasons) or "no accelerator backend is installed"


@pytest.fixture(scope="session")
def backend() -> str:
    name, reason = _accelerator()
    if not name:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session")
def device(backend: str) -> Device:
    from inferplane.plugins import open_device

    return open_device(Plugins(), backend)[0]
