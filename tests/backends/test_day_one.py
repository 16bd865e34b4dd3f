"""The backends that so far are a device and no kernels: what their probes say about machines
described as folders, and what they create."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pluggy
import pytest

from inferplane.errors import DeviceError
from inferplane.hw import DeviceInfo, TorchDevice, hookspecs
from tests.backends.machines import (
    pci,
    plugin,
    pretend_installed,
    pretend_torch,
    unavailable,
    write,
)

pytestmark = pytest.mark.usefixtures("bare_environment")


REPO = Path(__file__).parents[2]
NAMES = ("ascend", "cuda", "rocm", "tpu")


@pytest.mark.parametrize("name", NAMES)
def test_entry_point_names_a_plugin_with_the_mandatory_hooks(name: str) -> None:
    project = tomllib.loads((REPO / f"backends/{name}/pyproject.toml").read_text())["project"]
    points = project["entry-points"]["inferplane.backends"]
    assert points == {name: f"inferplane_{name}.plugin"}
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin(name))
    manager.check_pending()
    for hook in hookspecs.MANDATORY:
        assert getattr(manager.hook, hook).get_hookimpls(), hook
    assert manager.hook.backend_info().name == name
    assert manager.hook.backend_info().is_accelerator


@pytest.mark.parametrize("name", NAMES)
def test_probe_of_the_real_machine_is_pure(name: str) -> None:
    """In a process of its own: no torch, no vendor library, no child process, same answer twice."""
    code = f"""
import json, os, sys
import inferplane_{name}.plugin as plugin
def refuse(*args):
    if args[0] in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn"):
        raise RuntimeError(args[0])
sys.addaudithook(refuse)
first, second = plugin.probe(), plugin.probe()
maps = open("/proc/self/maps").read()
print(json.dumps([first == second, [m for m in ("torch", "numpy") if m in sys.modules],
    [lib for lib in ("libcuda.so", "libamdhip", "libtpu", "libascendcl") if lib in maps],
    os.listdir("/proc/self/task")]))
"""
    paths = [str(REPO / "core"), str(REPO / "backends" / name)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    same, imported, libraries, threads = json.loads(run.stdout)
    assert same and imported == [] and libraries == [] and len(threads) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_machine_has_no_hardware(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cuda":
        monkeypatch.setattr("inferplane_cuda.driver.LIBRARY", "libnone.so")
    assert unavailable(plugin(name).find(tmp_path)).code == "no_hardware"


@pytest.mark.parametrize(
    ("name", "files", "word"),
    [
        ("cuda", pci(0x10DE, 0x2330, 0x0302), "0000:01:00.0"),
        ("rocm", pci(0x1002, 0x74A1, 0x1200), "0000:01:00.0"),
        ("tpu", pci(0x1AE0, 0x6F, 0x1200), "/dev/vfio/0"),
        ("ascend", pci(0x19E5, 0xD802, 0x1200), "0000:01:00.0"),
        ("ascend", {"dev/davinci0": ""}, "davinci_manager"),
    ],
)
def test_hardware_without_driver(
    name: str, files: dict[str, str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cuda":
        monkeypatch.setattr("inferplane_cuda.driver.LIBRARY", "libnone.so")
    found = unavailable(plugin(name).find(write(tmp_path, files)))
    assert found.code == "no_driver"
    assert word in found.reason


def test_other_functions_of_a_vendor_are_not_devices(tmp_path: Path) -> None:
    network = write(tmp_path, pci(0x1AE0, 0x42, 0x0200))
    assert unavailable(plugin("tpu").find(network)).code == "no_hardware"
    bridge = write(tmp_path, pci(0x1002, 0x1480, 0x0600))
    assert unavailable(plugin("rocm").find(bridge)).code == "no_hardware"


# rocm

NODES = "sys/class/kfd/kfd/topology/nodes"


def kfd_node(index: int, version: int, uid: int, gib: int) -> dict[str, str]:
    node = f"{NODES}/{index}"
    return {
        f"{node}/properties": f"cpu_cores_count 0\nsimd_count 1216\n"
        f"gfx_target_version {version}\nunique_id {uid}\n",
        f"{node}/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {gib << 30}\n",
    }


@pytest.fixture
def rocm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    host = {"dev/kfd": "", f"{NODES}/0/properties": "cpu_cores_count 64\nsimd_count 0\n"}
    write(tmp_path, host | kfd_node(1, 90402, 10, 192) | kfd_node(10, 90010, 11, 64))
    write(tmp_path, kfd_node(2, 110000, 12, 24))
    module = plugin("rocm")
    pretend_torch(monkeypatch, module, __version__="2.13.0+rocm7.2", hip="7.2")
    return module


def test_rocm_lists_gpu_nodes_in_numeric_order(rocm: ModuleType, tmp_path: Path) -> None:
    found = rocm.find(tmp_path)
    assert [d.arch for d in found] == ["gfx942", "gfx1100", "gfx90a"]
    assert [d.memory_bytes for d in found] == [192 << 30, 24 << 30, 64 << 30]
    assert [d.torch_device for d in found] == ["cuda:0", "cuda:1", "cuda:2"]
    assert found[0].backend == "rocm"


def test_rocm_variables_narrow_one_after_the_other(
    rocm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,GPU-000000000000000a")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert [d.arch for d in rocm.find(tmp_path)] == ["gfx942"]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    assert "HIP_VISIBLE_DEVICES" in unavailable(rocm.find(tmp_path)).reason


def test_rocm_reports_permission_and_build(
    rocm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_torch(monkeypatch, rocm, __version__="2.13.0+cpu", hip=None)
    assert unavailable(rocm.find(tmp_path)).code == "wrong_build"
    monkeypatch.setattr(rocm, "usable", lambda path: False)
    found = unavailable(rocm.find(tmp_path))
    assert found.code == "no_permission"
    assert "render" in found.fix


# tpu


@pytest.mark.parametrize("node", ["dev/accel0", "dev/vfio/0"])
def test_tpu_goes_through_its_stack(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tpu = plugin("tpu")
    write(tmp_path, pci(0x1AE0, 0x6F, 0x1200) | {node: "", "dev/vfio/vfio": ""})
    pretend_installed(monkeypatch, tpu)
    assert "torch-tpu" in unavailable(tpu.find(tmp_path)).reason
    pretend_installed(monkeypatch, tpu, torch_tpu="0.2.0")
    assert "libtpu" in unavailable(tpu.find(tmp_path)).reason
    pretend_installed(monkeypatch, tpu, torch_tpu="0.2.0", torch_xla="2.9.0", libtpu="0.0.50")
    (found,) = tpu.find(tmp_path)
    assert (found.torch_device, found.arch, found.shape_policy) == ("tpu:0", "v6e", "bucketed")
    pretend_installed(monkeypatch, tpu, torch_xla="2.9.0", libtpu="0.0.50")
    assert tpu.find(tmp_path)[0].torch_device == "xla:0"
    monkeypatch.setattr(tpu, "usable", lambda path: False)
    assert unavailable(tpu.find(tmp_path)).code == "no_permission"


# ascend


@pytest.fixture
def ascend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    write(tmp_path, {f"dev/{n}": "" for n in ("davinci0", "davinci10", "davinci_manager")})
    module = plugin("ascend")
    pretend_torch(monkeypatch, module, __version__="2.13.0+cpu")
    pretend_installed(monkeypatch, module, torch_npu="2.13.0.post1")
    return module


def test_ascend_finds_cann_where_the_loader_does(
    ascend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "CANN is not installed" in unavailable(ascend.find(tmp_path)).reason
    home = tmp_path / "usr/local/Ascend/ascend-toolkit/latest"
    write(home, {"lib64/libascendcl.so": "", "set_env.sh": ""})
    found = unavailable(ascend.find(tmp_path))
    assert found.code == "no_library"
    assert found.fix == f"source {home}/set_env.sh"
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{home}/lib64")
    assert [d.torch_device for d in ascend.find(tmp_path)] == ["npu:0", "npu:1"]
    monkeypatch.delenv("LD_LIBRARY_PATH")
    conf = "# vendor\n/usr/local/Ascend/ascend-toolkit/latest/lib64\n"
    write(tmp_path, {"etc/ld.so.conf.d/ascend.conf": conf})
    assert ascend.find(tmp_path)[0].traits.exact_host_lengths
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    assert [d.torch_device for d in ascend.find(tmp_path)] == ["npu:0"]


def test_ascend_checks_that_the_versions_fit(
    ascend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"usr/lib64/libascendcl.so": ""})
    assert isinstance(ascend.find(tmp_path), list)
    pretend_installed(monkeypatch, ascend, torch_npu="2.1.3")
    found = unavailable(ascend.find(tmp_path))
    assert (found.code, found.fix) == ("wrong_build", "pip install 'torch-npu==2.13.*'")
    pretend_installed(monkeypatch, ascend)
    assert unavailable(ascend.find(tmp_path)).code == "no_library"
    monkeypatch.setattr(ascend, "usable", lambda path: False)
    assert unavailable(ascend.find(tmp_path)).code == "no_permission"


# creation


@pytest.mark.parametrize("name", NAMES)
def test_creates_a_torch_device_once_the_extension_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    entry = SimpleNamespace(load=lambda: lambda: loaded.append("torch_tpu"))
    monkeypatch.setattr(plugin("tpu"), "entry_points", lambda **_: [entry])
    info = DeviceInfo(backend=name, torch_device="cpu", name="stand-in")
    assert isinstance(plugin(name).create_device(info, {}), TorchDevice)
    assert loaded == (["torch_tpu"] if name == "tpu" else [])


@pytest.mark.parametrize(
    ("name", "torch_device", "word"),
    [("ascend", "npu:0", "torch-npu"), ("tpu", "xla:0", "libtpu"), ("cuda", "cuda:99", "cuda:99")],
)
def test_a_stack_that_does_not_load_is_a_device_error(
    name: str, torch_device: str, word: str
) -> None:
    info = DeviceInfo(backend=name, torch_device=torch_device, name="stand-in")
    with pytest.raises(DeviceError, match=word):
        plugin(name).create_device(info, {})


def test_a_broken_device_extension_does_not_break_torch(tmp_path: Path) -> None:
    """As torch-npu without its toolkit: torch imports it by itself, unless told not to."""
    points = "[torch.backends]\nbroken = broken_extension:autoload\n"
    metadata = "Metadata-Version: 2.1\nName: broken\nVersion: 1\n"
    info = {"entry_points.txt": points, "METADATA": metadata}
    write(tmp_path / "broken-1.dist-info", info)
    write(tmp_path, {"broken_extension.py": "raise OSError('libvendor.so: cannot open')\n"})
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), str(REPO / "core")]))
    env.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    assert "libvendor.so" in run("import torch").stderr
    calm = run("from inferplane import env; env.disable_device_autoload(); import torch")
    assert calm.returncode == 0, calm.stderr
