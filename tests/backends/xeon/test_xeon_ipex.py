"""Intel Extension for PyTorch as second choice: what is said where it is not, and of its limits.

ci/suites/ipex.py runs its kernels, in an environment that has it.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferplane.errors import DeviceError
from inferplane.hw import DeviceInfo, TorchDevice
from inferplane.hw.kv import KVSpec
from inferplane.hw.op import Reject, Support
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.quantization import Scheme
from inferplane.resolver import Resolver
from inferplane_xeon import ipex, plugin

LINEAR = LinearSpec(in_features=64, out_features=32, dtype="bfloat16")
ATTENTION = AttentionSpec(
    layer=0,
    group=0,
    num_heads=4,
    kv=KVSpec(num_kv_heads=2, head_dim=64, dtype="bfloat16", page_size=16, layout="head_major"),
    dtype="bfloat16",
    scale=0.125,
)


@pytest.mark.parametrize(
    ("version", "torch", "reason"),
    [
        (None, "2.13.0", "intel_extension_for_pytorch is not installed"),
        ("2.8.0", "2.13.0+cpu", "intel_extension_for_pytorch 2.8 needs torch 2.8, there is 2.13"),
        ("2.8.0+cpu", "2.80.0", "intel_extension_for_pytorch 2.8 needs torch 2.8, there is 2.80"),
        ("2.8.0+cpu", "2.8.1+cu128", ""),
    ],
)
def test_it_needs_its_own_torch(version: str | None, torch: str, reason: str) -> None:
    problem = ipex.library_problem(version, torch)
    assert problem == (Reject("library", reason) if reason else None)


def device() -> TorchDevice:
    info = DeviceInfo(backend="xeon", torch_device="cpu", name="test", arch="avx2")
    return TorchDevice(info, ("bfloat16", "float32"))


def resolver(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], **more: Any) -> Resolver:
    monkeypatch.setattr(ipex, "installed_version", installed.get)
    here = device()
    return Resolver(here, list(plugin.op_impls(here)), **more)


def test_explain_gets_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolver(monkeypatch, {"torch": "2.13.0"}).resolve("linear", LINEAR)
    assert found.chosen.name == "xeon.linear"
    verdict = dict(found.verdicts)["ipex.linear"]
    assert verdict == Reject("library", "intel_extension_for_pytorch is not installed")


INSTALLED = {ipex.LIBRARY: "2.8.0", "torch": "2.8.0"}


def test_it_is_second_choice_and_never_batch_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    for op, spec in (("linear", LINEAR), ("attention.paged", ATTENTION)):
        found = resolver(monkeypatch, INSTALLED).resolve(op, spec)
        name = "ipex.linear" if op == "linear" else "ipex.attention"
        second = dict(found.verdicts)[name]
        assert isinstance(second, Support)
        assert 0 < second.priority < found.support.priority
        asked = resolver(monkeypatch, INSTALLED, overrides={op: name})
        assert asked.resolve(op, spec).chosen.name == name
        found = resolver(monkeypatch, INSTALLED).resolve(op, replace(spec, determinism="batch"))
        refused = dict(found.verdicts)[name]
        assert isinstance(refused, Reject)
        assert refused.code == "determinism"


def test_pages_of_another_layout_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(ATTENTION, kv=replace(ATTENTION.kv, layout="canonical"))
    found = resolver(monkeypatch, INSTALLED).resolve("attention.paged", spec)
    refused = dict(found.verdicts)["ipex.attention"]
    assert refused == Reject("layout", "canonical not in ('head_major',)")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sinks": True}, "feature"),
        ({"tree": True}, "feature"),
        ({"window": 1}, "feature"),
        ({"kv": replace(ATTENTION.kv, dtype="float8_e4m3fn")}, "dtype"),
    ],
)
def test_limits_of_attention(change: dict[str, Any], code: str) -> None:
    problem = ipex.attention_problem(replace(ATTENTION, **change))
    assert problem is not None
    assert problem.code == code
    assert ipex.attention_problem(ATTENTION) is None


@pytest.mark.parametrize(
    ("change", "code"),
    [({"dtype": "float16"}, "dtype"), ({"scheme": Scheme(weight="int8")}, "feature")],
)
def test_limits_of_linear(change: dict[str, Any], code: str) -> None:
    problem = ipex.linear_problem(replace(LINEAR, **change))
    assert problem is not None
    assert problem.code == code
    assert ipex.linear_problem(LINEAR) is None


@pytest.mark.parametrize("files", [[], [Path("nowhere/libintel-ext-pt-cpu.so")]])
def test_a_broken_installation(monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> None:
    entries = [SimpleNamespace(name=f.name, locate=lambda f=f: f) for f in files]
    monkeypatch.setattr(ipex, "distribution", lambda name: SimpleNamespace(files=entries))
    ipex.load.cache_clear()
    with pytest.raises(DeviceError, match=r"installed but cannot be loaded.*reinstall"):
        ipex.load()


def test_asking_for_it_imports_nothing() -> None:
    script = """
import sys
from inferplane.hw import DeviceInfo
from inferplane.hw.ops.linear import LinearSpec
from inferplane_xeon import ipex
for op, impl in ipex.implementations():
    impl.supports(LinearSpec(in_features=8, out_features=8, dtype="float32"), None)
assert not {"torch", "intel_extension_for_pytorch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
