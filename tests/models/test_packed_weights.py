"""Packed weights over several starts of an engine: what is packed again and what is not, the same
bits in any case, and no start that fails for want of the file."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import inferplane.hw as hw
from inferplane.checkpoint.packed_file import PART
from inferplane.checkpoint.source import open_model
from inferplane.config import Config
from inferplane.engine import open_engine
from inferplane.hw.ops import TABLE
from inferplane.plugins import Plugins
from inferplane.runner import packed
from inferplane.testing.tiny import TinySource
from tests.models.serving import ReferenceBackend, Served, ask, random_prompt

PROMPT = random_prompt(20, 90)
PRODUCTS = 9
"""of the tiny model: four in each of two layers, and the logits"""
KEPT = 7
"""those of a feed-forward together"""


class Starts:
    """A backend whose products are packed by turning them, with a count of what was packed."""

    def __init__(self, form: str = "turned 1") -> None:
        self.packed: Counter[str] = Counter()
        self.form = form
        self.read = (0, 1)
        starts = self

        class Product:
            name = "plain.turned"

            def __init__(self, op: str) -> None:
                self.op = op

            def supports(self, spec: Any, device: hw.Device) -> hw.Support | hw.Reject:
                return hw.Support(priority=60, invariance="batch")

            def build(self, spec: Any, ctx: hw.BuildContext) -> hw.Bound:
                return starts.bound(self.op, spec, ctx)

        class Backend(ReferenceBackend):
            @staticmethod
            @hw.impl
            def op_impls(device: hw.Device) -> list[tuple[str, hw.OpImpl]]:
                return [(op, Product(op)) for op in ("linear", "logits")]

        self.plugins = Plugins()
        self.plugins.register("plain", Backend)

    def bound(self, op: str, spec: Any, ctx: hw.BuildContext) -> hw.Bound:
        right = TABLE[op].reference.build(spec, ctx)

        def prepack(weight: Any, bias: Any = None) -> Any:
            self.packed[op] += 1
            return weight.t().contiguous(), bias

        def run(x: Any, weights: Any) -> Any:
            turned = weights[0].t()
            return right.run(x, (turned, weights[1]) if op == "linear" else turned)

        packing = hw.Packing(
            self.form,
            lambda made: {n: t for n, t in zip("wb", made, strict=True) if t is not None},
            lambda kept: (kept["w"], kept.get("b")),
        )
        return hw.Bound(run=run, prepack=prepack, packing=packing)

    def start(self, folder: Path, **settings: Any) -> torch.Tensor:
        """Logits of a fresh engine; `packed` has what it packed."""
        self.packed.clear()
        defaults = {"device": "plain", "dtype": "float32", "kv_cache_tokens": 1024}
        config = Config(model=str(folder), **(defaults | settings))
        engine = open_engine(config, open_model(str(folder)), self.plugins, progress=self._progress)
        served = Served(engine)
        served.run([ask("a", PROMPT, 2)])
        return torch.stack(list(served.logits("a").values()))

    def _progress(self, done: int, total: int) -> None:
        self.read = (done, total)


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    monkeypatch.setenv("INFERPLANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed, "SMALLEST", 0)
    return Starts()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


def write(folder: Path, seed: int = 0) -> Path:
    source = TinySource("llama", seed)
    folder.mkdir(exist_ok=True)
    save_file(dict(source.tensors()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(source.config))
    return folder


def files(starts_at: Path) -> list[Path]:
    return sorted((starts_at.parent / "cache" / "packed").glob("*"))


def test_the_second_start_packs_nothing(starts: Starts, model: Path) -> None:
    first = starts.start(model)
    assert starts.packed.total() == PRODUCTS
    assert [path.suffix for path in files(model)] == [".packed"]
    assert files(model)[0].stat().st_mode & 0o077 == 0
    assert files(model)[0].parent.stat().st_mode & 0o077 == 0
    written = files(model)[0].stat()
    for _ in range(2):
        assert torch.equal(starts.start(model), first)
        assert not starts.packed
        assert starts.read[0] == starts.read[1] > 0
    assert files(model)[0].stat().st_ino == written.st_ino  # nothing was written
    assert files(model)[0].stat().st_mtime_ns > written.st_mtime_ns  # but it was used


def test_what_is_mapped_is_not_read(
    starts: Starts, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = starts.start(model)
    from inferplane.checkpoint.safetensors import SafetensorsTensors

    asked: list[str] = []
    plain = SafetensorsTensors.__getitem__

    def watch(self: SafetensorsTensors, name: str) -> torch.Tensor:
        asked.append(name)
        return plain(self, name)

    monkeypatch.setattr(SafetensorsTensors, "__getitem__", watch)
    with caplog.at_level(logging.INFO):
        assert torch.equal(starts.start(model), first)
    assert asked
    assert all("norm" in name or "embed" in name for name in asked)
    assert f"packed weights: {KEPT} mapped, 0 packed" in caplog.text
    assert "are not used" not in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :],
        lambda whole: whole[:-100],
        lambda whole: whole[:10],
        lambda whole: b"",
        lambda whole: bytes(len(whole)),
    ],
    ids=["flipped", "truncated", "torn", "empty", "zeros"],
)
def test_a_damaged_file_is_packed_again(
    damage: Callable[[bytes], bytes], starts: Starts, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = starts.start(model)
    (path,) = files(model)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(starts.start(model), first)
    assert starts.packed.total() == PRODUCTS
    assert "is damaged and not used" in caplog.text
    assert path.read_bytes() == whole
    assert torch.equal(starts.start(model), first)
    assert not starts.packed


def test_a_changed_checkpoint_is_packed_again(starts: Starts, model: Path) -> None:
    """Of the same size and with the same times: written over, in place, and as another file."""
    first, path = starts.start(model), model / "model.safetensors"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][0] *= -1
    other = model / "other"
    save_file(tensors, other)
    changed = other.read_bytes()
    other.unlink()
    with open(path, "r+b") as file:
        file.write(changed)
    os.utime(path, ns=times)
    second = starts.start(model)
    assert starts.packed.total() == PRODUCTS
    assert not torch.equal(second, first)
    write(model)
    os.utime(path, ns=times)
    assert torch.equal(starts.start(model), first)
    assert starts.packed.total() == PRODUCTS


def test_a_checkpoint_that_changes_while_it_is_read_is_not_kept(
    starts: Starts, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close = packed.PackedWeights.close

    def touched(self: packed.PackedWeights) -> None:
        os.utime(model / "model.safetensors")
        close(self)

    monkeypatch.setattr(packed.PackedWeights, "close", touched)
    starts.start(model)
    assert "changed while it was read" in caplog.text
    assert files(model) == []


def test_another_file_under_the_name_of_this_one_gives_nothing(
    starts: Starts, model: Path, tmp_path: Path
) -> None:
    first = starts.start(model)
    (path,) = files(model)
    starts.start(write(tmp_path / "another", seed=1))
    (other,) = set(files(model)) - {path}
    shutil.copy(other, path)
    assert torch.equal(starts.start(model), first)
    assert starts.packed.total() == PRODUCTS


def test_other_settings_and_another_form_are_packed_again(starts: Starts, model: Path) -> None:
    starts.start(model)
    starts.start(model, dtype="bfloat16")
    assert starts.packed.total() == PRODUCTS
    assert len(files(model)) == 2
    starts.start(model)
    assert not starts.packed
    starts.form = "turned 2"
    starts.start(model)
    assert starts.packed.total() == PRODUCTS
    assert len(files(model)) == 2  # the file has the new form now
    starts.start(model, op=["logits=reference"])
    assert starts.packed == {"linear": PRODUCTS - 1}


def test_two_that_start_at_once(starts: Starts, model: Path) -> None:
    """Both find nothing and pack; the second file replaces the first, which stays mapped."""
    begun = packed.PackedWeights.read
    others: list[torch.Tensor] = []

    def meanwhile(self: packed.PackedWeights) -> None:
        begun(self)
        if not others:
            others.append(torch.empty(0))
            others[0] = starts.start(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed.PackedWeights, "read", meanwhile)
        mine = starts.start(model)
    assert torch.equal(mine, others[0])
    assert starts.packed.total() == 2 * PRODUCTS
    assert torch.equal(starts.start(model), mine)
    assert not starts.packed
    assert len(files(model)) == 1


@pytest.mark.parametrize("why", ["no folder", "no room", "too large"])
def test_a_start_goes_on_without_the_file(
    why: str,
    starts: Starts,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if why == "no folder":  # nor can one be made: that is how a read-only place looks to root, too
        monkeypatch.setenv("INFERPLANE_CACHE", str(model / "config.json"))
    elif why == "no room":
        monkeypatch.setattr(packed, "ROOM", 1 << 60)
    else:
        monkeypatch.setattr(packed, "LIMIT", 1000)
    for _ in range(2):
        caplog.clear()
        starts.start(model)
        assert starts.packed.total() == PRODUCTS
        warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
        assert any("are not kept in" in message for message in warned)
    assert files(model) == []


def test_a_user_without_a_home(
    starts: Starts, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INFERPLANE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    starts.start(model)
    assert starts.packed.total() == PRODUCTS
    assert "set INFERPLANE_CACHE" in caplog.text


def test_small_models_are_packed_each_time(starts: Starts, model: Path) -> None:
    packed.SMALLEST = 16 << 20  # the fixture restores it
    for _ in range(2):
        starts.start(model)
        assert starts.packed.total() == PRODUCTS
    assert files(model) == []


def test_the_files_used_longest_ago_make_room(
    starts: Starts, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [write(tmp_path / f"model{seed}", seed) for seed in range(3)]
    starts.start(models[0])
    size = files(model)[0].stat().st_size
    monkeypatch.setattr(packed, "LIMIT", size * 5 // 2)
    folder = files(model)[0].parent
    (folder / f"fresh{PART}").write_bytes(b"somebody is writing")
    (folder / f"old{PART}").write_bytes(b"nobody is")
    os.utime(folder / f"old{PART}", (0, 0))
    starts.start(models[1])
    for at, path in enumerate(p for p in files(model) if p.suffix == ".packed"):
        os.utime(path, (at + 1, at + 1))
    starts.start(models[0])  # used now
    assert not starts.packed
    starts.start(models[2])
    assert [p.name for p in files(model) if p.suffix == PART] == [f"fresh{PART}"]
    assert len(files(model)) == 3
    starts.start(models[0])
    assert not starts.packed
    starts.start(models[2])
    assert not starts.packed
    starts.start(models[1])
    assert starts.packed.total() == PRODUCTS


def test_devices_that_say_nothing_of_packing_get_no_file(starts: Starts, model: Path) -> None:
    starts.start(model, op=["*=reference"])
    assert files(model) == []


def test_dummy_weights_are_not_kept(starts: Starts, model: Path) -> None:
    starts.start(model, load_format="dummy")
    assert starts.packed.total() == PRODUCTS
    assert files(model) == []
