"""The accelerator of this machine, or a skip that says why there is none.

`--device NAME` takes a named device instead, such as `xeon`, to try the tests themselves where
there is no accelerator: with smaller models, as `accelerated` says."""

import pytest

from inferplane.hw import Device, KVSpec, Support
from inferplane.hw.op import Determinism
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.plugins import BACKENDS, Plugins, open_device
from inferplane.resolver import short_name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="a backend to test in place of the machine's accelerator")


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
def backend(request: pytest.FixtureRequest) -> str:
    named: str | None = request.config.getoption("--device", default=None)
    if named:
        return named
    name, reason = _accelerator()
    if not name:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session")
def device(backend: str) -> Device:
    return open_device(Plugins(), backend)[0]


@pytest.fixture(scope="session")
def accelerated(backend: str) -> bool:
    """Whether models may have the sizes of real ones."""
    info = Plugins().load(BACKENDS, backend).info
    return info is not None and info.is_accelerator


def attention_backends(device: Device, determinism: Determinism) -> list[str]:
    """What --attention-backend can be for the tiny model "wide" in bfloat16; says why others
    cannot."""
    kv = KVSpec(num_kv_heads=2, head_dim=64, dtype="bfloat16", page_size=16)
    spec = AttentionSpec(
        layer=0,
        group=0,
        num_heads=8,
        kv=kv,
        dtype="bfloat16",
        scale=0.125,
        determinism=determinism,
    )
    found = []
    plugins = Plugins()
    opened, _ = open_device(plugins, device.info.backend)  # else it would know the packs alone
    for op, impl in plugins.op_impls(opened):
        if op == "attention.paged":
            verdict = impl.supports(spec, opened)
            if isinstance(verdict, Support):
                found.append(short_name(impl.name))
            else:
                print(f"{impl.name}: {verdict.reason}")
    return found
