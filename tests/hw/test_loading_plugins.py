"""What a backend or op pack must be to be loaded, and what becomes of one that is not."""

import logging
from pathlib import Path
from typing import Any

import pluggy
import pytest

from inferplane.errors import PluginError
from inferplane.hw import CONTRACT, hookspecs, impl
from inferplane.plugins import BACKENDS, OPS, open_device
from tests.hw.backends import Alone, backend, install, plugins, run

GOOD = """
from inferplane.hw import BackendInfo, DeviceInfo, TorchDevice, impl
@impl
def backend_info(): return BackendInfo(name="acme", version="0.4", devices=("acme",))
@impl
def probe(): return [DeviceInfo(backend="acme", torch_device="cpu", name="Acme One")]
@impl
def create_device(info, options): return TorchDevice(info)
"""


def refusal(module: Any, group: str = BACKENDS) -> str:
    host = Alone()
    with pytest.raises(PluginError) as caught:
        host.register("acme", module, group)
    assert host.manager.get_plugins() == set()
    assert host.names(group) == []
    return str(caught.value)


@pytest.mark.parametrize("hook", hookspecs.MANDATORY)
def test_a_required_hook_is_missing(hook: str) -> None:
    module = backend("acme")
    delattr(module, hook)
    assert refusal(module) == f"backend acme lacks the required hooks ['{hook}']"


def test_a_misspelt_hook_is_an_error() -> None:
    @impl
    def op_impl(device: Any) -> Any:
        return []

    text = refusal(backend("acme", op_impl=op_impl))
    assert text == (
        "plugin acme has unknown hooks ['op_impl']: the hooks are backend_info, probe, "
        "create_device, op_impls, kv_layouts, graphs, compiler, hints, host_threads, diagnostics"
    )
    text = refusal(backend("acme", probe=None, prob=op_impl))
    assert text == (
        "backend acme lacks the required hooks ['probe'], and has ['prob'], which no host calls"
    )


def test_a_hook_with_an_unknown_argument_is_an_error() -> None:
    @impl
    def op_impls(device: Any, colour: Any) -> Any:
        return []

    assert "colour" in refusal(backend("acme", op_impls=op_impls))


def test_a_hook_may_take_fewer_arguments_than_it_is_offered() -> None:
    @impl
    def create_device(info: Any) -> Any:
        return info

    host = plugins(backend("acme", create_device=create_device))
    made = host.call("create_device", host.load(BACKENDS, "acme"), info=5, options={})
    assert made == 5


def test_the_list_of_hooks_is_complete() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    assert sorted(hookspecs.ALL) == sorted(vars(manager.hook))


@pytest.mark.parametrize(
    ("api", "text"),
    [
        (
            ((2, 0), (2, 4)),
            "backend acme 1.2 needs contract 2.0 to 2.4, this host has 1.0: upgrade inferplane",
        ),
        (
            ((0, 1), (0, 9)),
            "backend acme 1.2 needs contract 0.1 to 0.9, this host has 1.0: upgrade backend acme "
            "1.2",
        ),
        (
            ((1, 2), (1, 3)),
            "backend acme 1.2 needs contract 1.2 to 1.3, this host has 1.0: upgrade inferplane",
        ),
    ],
)
def test_a_version_that_does_not_overlap(api: Any, text: str) -> None:
    assert CONTRACT == (1, 0), "adapt the ranges of this test"
    assert refusal(backend("acme", api=api)) == text


def test_a_newer_plugin_is_clamped_with_a_note_and_its_new_hooks_are_ignored() -> None:
    @impl
    def teleport(device: Any) -> Any:
        return None

    host = plugins(backend("acme", api=((1, 0), (1, 3)), teleport=teleport))
    loaded = host.load(BACKENDS, "acme")
    assert loaded.note == (
        "built for contract 1.3, host has 1.0: using the host's (teleport ignored)"
    )
    assert open_device(host, "acme")[0].info.name == "acme 0"
    host = plugins(backend("acme", api=((1, 0), (2, 0))))
    assert "using the host's" in host.load(BACKENDS, "acme").note
    assert plugins(backend("acme")).load(BACKENDS, "acme").note == ""


def test_a_backend_info_that_raises_or_is_something_else() -> None:
    @impl
    def raises() -> Any:
        raise ValueError("no version")

    @impl
    def returns() -> Any:
        return {"name": "acme"}

    module = backend("acme")
    module.backend_info = raises
    assert refusal(module) == "backend acme: backend_info: ValueError: no version"
    module.backend_info = returns
    assert "returned {'name': 'acme'}, not a BackendInfo" in refusal(module)


def test_one_module_under_two_names_keeps_the_first() -> None:
    module = backend("acme")
    host = plugins(module)
    with pytest.raises(PluginError, match="already registered"):
        host.register("other", module)
    assert open_device(host, "acme")[0].info.backend == "acme"


def test_an_op_pack_needs_op_impls() -> None:
    assert refusal(backend("x", backend_info=None, probe=None, create_device=None), OPS) == (
        "op pack acme lacks the required hooks ['op_impls']"
    )


def pack(found: Any) -> Any:
    @impl
    def op_impls(device: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return [("linear", found)]

    hooks = {"backend_info": None, "probe": None, "create_device": None}
    return backend("x", op_impls=op_impls, **hooks)


def test_ops_come_from_the_device_s_backend_and_from_every_pack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @impl
    def op_impls(device: Any) -> Any:
        return [("linear", "own")]

    host = plugins(backend("acme", op_impls=op_impls))
    host.register("add-on", pack("extra"), OPS)
    host.register("bad", pack(RuntimeError("no compiler")), OPS)
    device, _ = open_device(host, "acme")
    with caplog.at_level(logging.WARNING):
        assert host.op_impls(device) == [("linear", "own"), ("linear", "extra")]
    assert host.load(OPS, "bad").failure == "plugin bad: op_impls: RuntimeError: no compiler"
    assert "no compiler" in caplog.text


def test_an_op_that_only_a_newer_contract_has_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @impl
    def op_impls(device: Any) -> Any:
        return [("linear", "own"), ("moe.route", "new")]

    host = plugins(backend("acme", op_impls=op_impls))
    device, _ = open_device(host, "acme")
    with caplog.at_level(logging.WARNING):
        assert host.op_impls(device) == [("linear", "own")]
    assert host.load(BACKENDS, "acme").note == "contract 1.0 has no op moe.route: ignored"
    assert "plugin acme: contract 1.0 has no op moe.route: ignored" in caplog.text


def test_ops_of_another_backend_are_not_used() -> None:
    @impl
    def op_impls(device: Any) -> Any:
        return [("linear", "foreign")]

    host = plugins(backend("acme"), backend("other", op_impls=op_impls))
    device, _ = open_device(host, "acme")
    assert host.op_impls(device) == []
    assert host.optional("hints", device) is None


def test_ops_of_the_device_s_own_backend_must_load() -> None:
    @impl
    def op_impls(device: Any) -> Any:
        raise RuntimeError("no compiler")

    host = plugins(backend("acme", op_impls=op_impls))
    device, _ = open_device(host, "acme")
    with pytest.raises(PluginError, match="plugin acme: op_impls: RuntimeError: no compiler"):
        host.op_impls(device)


LISTING = """
import json
from inferplane.plugins import *
host = Plugins()
probed = [host.probe(loaded) for loaded in host.load_all(BACKENDS)]
print(json.dumps({p.backend.name: [p.backend.package, p.line()] for p in probed}))
"""

OPENING = """
import json
from inferplane.plugins import *
from inferplane.errors import InferplaneError
try:
    text = open_device(Plugins(), %r)[0].info.name
except InferplaneError as error:
    text = str(error)
print(json.dumps(text))
"""


def test_an_installed_backend_is_found_by_its_entry_point(tmp_path: Path) -> None:
    install(tmp_path, "acme", GOOD)
    assert run(OPENING % "acme", tmp_path) == "Acme One"
    package, line = run(LISTING, tmp_path)["acme"]
    assert (package, line.split()) == ("acme 0.4", "acme 0.4 available: Acme One".split())


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("raise OSError('libvendor.so: cannot open')", "OSError: libvendor.so: cannot open"),
        ("import torch_of_nobody", "ModuleNotFoundError: No module named 'torch_of_nobody'"),
        ("x = (", "SyntaxError"),
        (GOOD.replace("def probe", "def prob"), "lacks the required hooks ['probe']"),
        (GOOD.replace('version="0.4"', 'version="0.4", api=((9, 0), (9, 0))'), "contract 9.0"),
        (GOOD.replace("version=", "ersion="), "backend_info: TypeError"),
    ],
)
def test_a_broken_package_fails_alone(source: str, text: str, tmp_path: Path) -> None:
    """By name it is the error; in a listing it is one line, and the others are there."""
    install(tmp_path, "broken", source)
    install(tmp_path, "acme", GOOD)
    assert text in run(OPENING % "broken", tmp_path)
    listing = run(LISTING, tmp_path)
    assert "FAILED" in listing["broken"][1] and text in listing["broken"][1]
    assert "available" in listing["acme"][1]
    assert run(OPENING % "acme", tmp_path) == "Acme One"


def test_the_contract_imports_no_torch() -> None:
    code = "import json, sys, inferplane.hw, inferplane.hw.ops, inferplane.hw.probing"
    code += "\nimport inferplane.plugins, inferplane.resolver"
    assert (
        run(code + "\nprint(json.dumps([m for m in ('torch', 'numpy') if m in sys.modules]))") == []
    )
