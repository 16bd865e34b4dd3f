"""The xeon backend's hooks: what it finds on a machine, and what it says when something lacks."""

import os
import sys
from pathlib import Path

import pytest

from inferplane.errors import DeviceError
from inferplane.hw import DeviceInfo, Unavailable
from inferplane.hw.op import Support
from inferplane.hw.ops.linear import LinearSpec
from inferplane.plugins import Plugins, open_device
from inferplane_xeon import kernels, plugin

AVX512 = "avx2 fma avx512f avx512bw avx512vl avx512dq"


def machine(root: Path, flags: str) -> Path:
    (root / "proc").mkdir()
    text = f"processor\t: 0\nmodel name\t: Test 9000\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    (root / "proc/cpuinfo").write_text(text)
    return root


@pytest.mark.parametrize(
    ("flags", "arch"),
    [
        ("sse2 avx2 fma", "avx2"),
        ("avx2 fma avx512f", "avx2"),
        (AVX512, "avx512"),
        (AVX512 + " avx512_bf16", "avx512"),
        (AVX512 + " avx512_vnni", "avx512_vnni"),
        (AVX512 + " avx512_vnni avx512_bf16", "avx512_bf16"),
        (AVX512 + " avx512_vnni avx512_bf16 amx_tile amx_int8", "avx512_bf16"),
        (AVX512 + " avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16", "amx"),
    ],
)
def test_finds_the_processor(tmp_path: Path, flags: str, arch: str) -> None:
    found = plugin.find("x86_64", machine(tmp_path, flags))
    assert isinstance(found, list)
    assert [(d.name, d.arch, d.torch_device) for d in found] == [("Test 9000", arch, "cpu")]


def test_an_old_processor(tmp_path: Path) -> None:
    found = plugin.find("x86_64", machine(tmp_path, "sse2 avx"))
    assert isinstance(found, Unavailable)
    assert (found.code, found.reason) == ("unsupported", "the processor lacks avx2, fma")


def test_an_old_processor_stops_everything_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "ROOT", machine(tmp_path, "sse2 avx fma"))
    monkeypatch.setattr(kernels, "library", None)  # nobody gets so far
    plugins = Plugins()
    plugins.register("xeon", plugin)
    with pytest.raises(DeviceError) as error:
        open_device(plugins, "xeon")
    text = str(error.value)
    assert "the processor lacks avx2" in text and "fma" not in text
    assert "use a processor from 2013 or later" in text
    assert "pass the host's instruction sets through" in text


def test_another_architecture() -> None:
    found = plugin.find("aarch64")
    assert isinstance(found, Unavailable)
    assert found.code == "no_hardware"
    assert "aarch64" in found.reason


def test_kernels_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def library() -> None:
        raise ImportError("no module named _kernels")

    monkeypatch.setattr(kernels, "library", library)
    with pytest.raises(DeviceError, match=r"cannot be loaded \(no module.*reinstall with pip"):
        plugin.create_device(info(), {})


def info(backend: str = "xeon", arch: str = "avx2") -> DeviceInfo:
    return DeviceInfo(backend=backend, torch_device="cpu", name="test", arch=arch)


def test_only_its_own_devices_get_kernels() -> None:
    pytest.importorskip("inferplane_xeon._kernels", reason="the kernels are not built")
    mine = plugin.create_device(info(), {})
    assert {op for op, _ in plugin.op_impls(mine)} >= {"attention.paged", "linear", "logits"}
    mine.info = info("null")
    assert list(plugin.op_impls(mine)) == []


@pytest.mark.parametrize(
    ("arch", "dtype"), [("avx2", "float32"), ("avx512_bf16", "bfloat16"), ("amx", "bfloat16")]
)
def test_preferred_type(arch: str, dtype: str) -> None:
    device = plugin.create_device(info(arch=arch), {})
    assert plugin.hints(device).dtype == dtype
    assert next(iter(device.dtypes())) == dtype
    assert plugin.diagnostics(device)["instruction set"] in kernels.library().isas()


TILE_CASES = [
    ("avx512_bf16", "bfloat16", False),
    ("amx", "bfloat16", True),
    ("amx", "float32", False),
]


@pytest.mark.parametrize(("arch", "dtype", "told"), TILE_CASES)
def test_products_on_tiles_are_told(arch: str, dtype: str, told: bool) -> None:
    device = plugin.create_device(info(arch=arch), {})
    spec = LinearSpec(in_features=64, out_features=64, dtype=dtype)
    impl = next(i for op, i in plugin.op_impls(device) if op == "linear")
    verdict = impl.supports(spec, device)
    assert isinstance(verdict, Support)
    assert ("matrix tiles" in verdict.notes) is told


@pytest.mark.parametrize(
    ("before", "loaded", "after"),
    [(None, False, "PASSIVE"), ("active", False, "active"), (None, True, None)],
)
def test_torch_threads_rest(
    before: str | None, loaded: bool, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", sys))
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    plugin.let_torch_rest()
    assert os.environ.get("OMP_WAIT_POLICY") == after
