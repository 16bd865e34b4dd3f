"""Safetensors checkpoints, whole and damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inferplane.checkpoint.safetensors import INDEX, SINGLE, SafetensorsTensors
from inferplane.errors import ModelError

WEIGHTS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(4, dtype=torch.bfloat16),
    "c": torch.arange(5, dtype=torch.float16),
    "d": torch.tensor([True, False]),
    "e": torch.arange(3, dtype=torch.int64),
}


def sharded(folder: Path, index: dict[str, str] | None = None) -> None:
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    save_file({"a": WEIGHTS["a"]}, folder / "model-1.safetensors")
    save_file({"b": WEIGHTS["b"], "c": WEIGHTS["c"]}, folder / "model-2.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": index or names}))


@pytest.mark.parametrize("name", [SINGLE, "other.safetensors"])
def test_single_file(tmp_path: Path, name: str) -> None:
    save_file(WEIGHTS, tmp_path / name)
    tensors = SafetensorsTensors(tmp_path)
    assert sorted(tensors) == sorted(tensors.names()) == sorted(WEIGHTS)
    assert len(tensors) == 5
    assert "a" in tensors and "z" not in tensors
    for key, value in WEIGHTS.items():
        assert torch.equal(tensors[key], value)
        assert tensors[key].dtype == value.dtype
        assert tensors.nbytes(key) == value.nbytes


def test_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    tensors = SafetensorsTensors(tmp_path)
    assert sorted(tensors.names()) == ["a", "b", "c"]
    for name in tensors:
        assert torch.equal(tensors[name], WEIGHTS[name])


def test_tensors_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1 << 20)}, tmp_path / SINGLE)
    tensors = SafetensorsTensors(tmp_path)
    first = tensors["w"]
    assert first.data_ptr() == tensors["w"].data_ptr()
    start = int(hex(first.data_ptr()), 16)
    maps = Path("/proc/self/maps").read_text().splitlines()
    inside = [m for m in maps if str(tmp_path / SINGLE) in m]
    ranges = [[int(x, 16) for x in m.split()[0].split("-")] for m in inside]
    assert any(low <= start < high for low, high in ranges)


def test_writing_to_a_view_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(64)}, tmp_path / SINGLE)
    before = (tmp_path / SINGLE).read_bytes()
    SafetensorsTensors(tmp_path)["w"].fill_(7)
    assert (tmp_path / SINGLE).read_bytes() == before


def test_linked_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model").mkdir()
    save_file(WEIGHTS, tmp_path / "blobs" / "123")
    (tmp_path / "model" / SINGLE).symlink_to("../blobs/123")
    assert torch.equal(SafetensorsTensors(tmp_path / "model")["a"], WEIGHTS["a"])


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin", "..", "a\\b"],
)
def test_index_cannot_leave_the_folder(tmp_path: Path, shard: str) -> None:
    sharded(tmp_path, {"a": "model-1.safetensors", "x": shard})
    with pytest.raises(ModelError, match=r"must be a \.safetensors file of the folder") as caught:
        SafetensorsTensors(tmp_path)
    assert repr(shard) in str(caught.value)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of 2 shards .*model-2\.safetensors.*again"):
        SafetensorsTensors(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_damaged_index(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        SafetensorsTensors(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    save_file(WEIGHTS, tmp_path / SINGLE)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
        SafetensorsTensors(tmp_path)


def test_tensor_that_the_index_promises_and_the_shard_lacks(tmp_path: Path) -> None:
    sharded(tmp_path, {"zz": "model-1.safetensors"})
    tensors = SafetensorsTensors(tmp_path)
    with pytest.raises(ModelError, match=r"model-1\.safetensors: tensor 'zz' cannot be read"):
        tensors["zz"]
    with pytest.raises(ModelError, match=r"model-1\.safetensors: tensor 'zz' cannot be read"):
        tensors.nbytes("zz")
    with pytest.raises(ModelError, match="has no tensor 'q'"):
        tensors["q"]


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor .*\.gguf files"):
        SafetensorsTensors(tmp_path)
    for name in ("x", "y"):
        save_file(WEIGHTS, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match=r"only x\.safetensors, y\.safetensors"):
        SafetensorsTensors(tmp_path)
