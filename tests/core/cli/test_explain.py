"""`explain` says what loading would do, and why, without reading a weight."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from inferplane.checkpoint.safetensors import SafetensorsTensors
from inferplane.checkpoint.source import ModelSource, open_model
from inferplane.cli.explain import render
from inferplane.cli.main import main
from inferplane.config import Config, flag, settings
from inferplane.errors import ConfigError, ResolveError
from inferplane.explain import Explanation, OpChoice, explain
from inferplane.offline import Engine
from inferplane.plugins import BACKENDS, Plugins
from tests.core.offline.tiny_model import WEIGHTS


def explained(folder: Path, **values: Any) -> Explanation:
    values.setdefault("device", "plain")
    values.setdefault("kv_cache_tokens", 4096)
    config = Config(model=str(folder), **values)
    return explain(config, open_model(str(folder)), Plugins(), values)


def choice(found: Explanation, op: str) -> OpChoice:
    (only,) = [c for c in found.ops if c.op == op]
    return only


def test_it_agrees_with_what_is_loaded(tiny_folder: Path, backends: Path) -> None:
    found = explained(tiny_folder)
    with Engine(str(tiny_folder), device="plain", kv_cache_tokens=4096) as engine:
        core: Any = engine.generator.client
        loaded = core.core.loaded
        decisions = loaded.resolver.decisions.values()
        assert sum(c.uses for c in found.ops) == sum(d.uses for d in decisions)
        assert {(c.op, c.chosen) for c in found.ops} == {(d.op, d.chosen.name) for d in decisions}
        assert found.memory.pages == loaded.budget.pages
        assert found.memory.kv == loaded.budget.kv
        values = {item.name: getattr(engine.config, item.name) for item in settings()}
        assert {s.name: s.value for s in found.settings} == values


def test_no_weight_is_read(
    tiny_folder: Path, backends: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(SafetensorsTensors, "__getitem__", read)
    assert explained(tiny_folder).weights_bytes == WEIGHTS


def test_weights_without_data_import_no_compiler(
    tiny_folder: Path, environment: dict[str, str]
) -> None:
    """Loading counts them, too: torch._dynamo would cost each start a second and its memory."""
    code = """
import sys
from inferplane.cli.main import main
assert main(["explain", sys.argv[1], "--device", "plain", "--kv-cache-tokens", "64"]) == 0
assert "torch" in sys.modules and "torch._dynamo" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(tiny_folder)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def test_attention_is_chosen_before_loading(tiny_folder: Path, backends: Path) -> None:
    found = explained(tiny_folder, attention_backend="reference")
    assert choice(found, "attention.paged").chosen == "reference"
    assert ("attention_backend", "reference", "user") in {
        (s.name, s.value, s.chosen_by) for s in found.settings if s.name == "attention_backend"
    }
    with pytest.raises(ConfigError, match=r"^--attention-backend flash: .* there are auto, "):
        explained(tiny_folder, attention_backend="flash")


def test_every_candidate_has_a_verdict_and_a_reason(tiny_folder: Path, backends: Path) -> None:
    norm = choice(explained(tiny_folder), "norm.rms")
    verdicts = {c.name: (c.verdict, c.code, c.reason) for c in norm.candidates}
    assert norm.chosen == "plain.norm"
    assert verdicts == {
        "plain.norm": ("chosen", "", "of the test"),
        "plain.half": ("rejected", "dtype", "only float16"),
        "reference": ("passed over", "", "priority 0, plain.norm has 60"),
    }


def test_a_forced_implementation_shows_why_others_are_out(
    tiny_folder: Path, backends: Path
) -> None:
    norm = choice(explained(tiny_folder, op=["norm.rms=reference"]), "norm.rms")
    assert norm.chosen == "reference"
    by_name = {c.name: c for c in norm.candidates}
    assert by_name["plain.norm"].reason == "--op asks for reference"


def test_fallbacks_are_named_and_strict_mode_refuses_them(
    tiny_folder: Path, backends: Path
) -> None:
    found = explained(tiny_folder)
    assert "linear" in found.fallbacks
    assert "norm.rms" not in found.fallbacks
    assert "fall back to the reference: " in render(found)
    with pytest.raises(ResolveError, match="strict mode"):
        explained(tiny_folder, require_native=True)


def test_each_setting_says_who_chose_it(
    tiny_folder: Path, backends: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plugins, "names", lambda self, group: ["plain"] * (group == BACKENDS))
    found = explained(tiny_folder, device="auto", max_running=5)
    assert found.device == "plain"
    chosen = {s.name: (s.value, s.chosen_by) for s in found.settings}
    assert list(chosen) == [item.name for item in settings()]
    assert chosen["max_running"] == (5, "user")
    assert chosen["port"] == (8000, "default")
    assert chosen["max_model_len"] == (4096, "max_position_embeddings of the model")
    assert chosen["kv_cache_tokens"] == (4096, "user")
    assert chosen["dtype"][0] == "float32"
    assert chosen["dtype"][1] not in ("user", "default")
    assert chosen["device"] == ("plain", "auto: Plain One, no accelerator found")


def test_weights_are_taken_off_the_free_memory(
    tiny_folder: Path, backends: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferplane.hw import torch_device
    from inferplane.hw.host import HostMemory

    monkeypatch.setattr(torch_device, "host_memory", lambda: HostMemory(10**9, 2 * 10**9))
    found = explained(tiny_folder)
    assert found.memory.free == 10**9 - WEIGHTS
    assert found.memory.total == 2 * 10**9
    needed = f"--kv-cache-tokens {10**8} needs"
    with pytest.raises(ConfigError, match=needed):
        explained(tiny_folder, kv_cache_tokens=10**8)


def test_json_has_all_that_the_table_has(
    tiny_folder: Path, backends: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", str(tiny_folder), "--device", "plain", "--kv-cache-tokens", "64"]
    assert main([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert set(value) == {item.name for item in fields(Explanation)}
    assert value["groups"][0]["pages"] == value["memory"]["pages"][0]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for op in value["ops"]:
        assert f"  {op['op']} x{op['uses']}: {op['chosen']}" in shown
        for candidate in op["candidates"]:
            assert candidate["reason"] in shown
    for item in settings():
        assert ("MODEL" if item.name == "model" else flag(item.name)) in shown
    assert "64 tokens" in shown
    assert "plain: Plain One (torch device cpu), float32" in shown


def test_layers_that_are_alike_share_a_line(demo_model: ModelSource, backends: Path) -> None:
    config = Config(model="smollm2", device="plain", dtype="float32", kv_cache_tokens=64)
    found = explain(config, demo_model, Plugins())
    assert choice(found, "attention.paged").uses == 30
    assert len([c for c in found.ops if c.op == "linear"]) == 4
    assert found.weights_bytes == 4 * 134_515_008
