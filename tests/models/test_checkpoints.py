"""Which checkpoints are taken and how they are named, and the error for every one that is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from inferplane.checkpoint.source import open_model
from inferplane.errors import ModelError
from tests.models.families import FAMILIES, SIZES, VOCAB, gemma3, llama
from tests.models.oracle import Oracle, make
from tests.models.serving import ask, random_prompt, serve

WEIGHTS = "model.safetensors"


def edit(folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    """Change config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))


def rename(folder: Path, new_name: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({new_name(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)


def agrees(folder: Path, oracle: Oracle) -> None:
    served = serve(open_model(str(folder)))
    answers = served.run([ask("a", random_prompt(70, VOCAB), 3)])
    oracle.check(served, "a", answers["a"])


def fails(folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        serve(open_model(str(folder)))
    for word in words:
        assert word in str(caught.value), caught.value


def test_weights_that_no_layer_takes_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, llama())
    serve(open_model(str(tmp_path)))
    assert "not used" not in caplog.text
    tensors = load_file(tmp_path / WEIGHTS)
    norm = tensors["model.norm.weight"]
    save_file(tensors | {"model.layers.0.extra.weight": norm.clone()}, tmp_path / WEIGHTS)
    serve(open_model(str(tmp_path)))
    assert "1 weights of the checkpoint are not used, such as model.layers.0.extra" in caplog.text


@pytest.mark.parametrize(
    "prefix", ["model.language_model.", "language_model.model."], ids=["new", "old"]
)
def test_vision_language_names(prefix: str, tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, gemma3())
    rename(tmp_path, lambda name: prefix + name.removeprefix("model."))
    text = json.loads((tmp_path / "config.json").read_text())
    top = {"model_type": "gemma3", "text_config": text, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(top))
    agrees(tmp_path, oracle)


def test_vision_language_head_under_the_old_name(tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, gemma3(tie_word_embeddings=False))
    rename(tmp_path, lambda name: f"language_model.{name}")
    agrees(tmp_path, oracle)


def test_gemma3_fields_that_large_checkpoints_leave_out(tmp_path: Path) -> None:
    """The text_config of the 4B model names only six fields."""
    config = gemma3(num_attention_heads=8, hidden_size=64, num_key_value_heads=4, head_dim=256)
    config.query_pre_attn_scalar = 256
    oracle, _ = make(tmp_path, config)
    left_out = ("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")
    more = ("query_pre_attn_scalar", "hidden_activation", "tie_word_embeddings")
    edit(tmp_path, left_out + more)
    agrees(tmp_path, oracle)


@pytest.mark.parametrize(
    ("config", "old"),
    [
        (
            llama(),
            {"rope_theta": 5e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
        (
            gemma3(),
            {
                "rope_theta": 1e5,
                "rope_local_base_freq": 5e3,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "sliding_window_pattern": 2,
            },
        ),
    ],
    ids=["llama", "gemma3"],
)
def test_configurations_of_older_files(
    config: PretrainedConfig, old: dict[str, Any], tmp_path: Path
) -> None:
    make(tmp_path, config)
    edit(tmp_path, ("rope_parameters", "layer_types", "_sliding_window_pattern", "dtype"), **old)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    agrees(tmp_path, Oracle(model))


def test_llama_without_num_key_value_heads(tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(num_key_value_heads=4))
    edit(tmp_path, ("num_key_value_heads",))
    agrees(tmp_path, oracle)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_has_no_window_unless_told(model_type: str, tmp_path: Path) -> None:
    """Its files name a sliding_window that is switched off by default."""
    oracle, _ = make(tmp_path, FAMILIES[model_type])
    edit(tmp_path, ("layer_types", "use_sliding_window", "max_window_layers"), sliding_window=19)
    agrees(tmp_path, oracle)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path, llama())
    return tmp_path


def test_unknown_architecture_lists_the_supported_ones(folder: Path) -> None:
    edit(folder, model_type="mamba9")
    fails(folder, "'mamba9'", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
    edit(folder, ("model_type",))
    fails(folder, "None", "llama")


def test_missing_weight(folder: Path) -> None:
    rename(folder, lambda name: name.replace("layers.1.mlp.up_proj", "gone"))
    fails(folder, "model.layers.1.mlp.up_proj.weight", "not in the checkpoint")


def test_weight_of_another_shape(folder: Path) -> None:
    edit(folder, num_key_value_heads=4)
    fails(folder, "model.layers.0.self_attn.k_proj.weight", "[32, 64]", "[64, 64]")


@pytest.mark.parametrize("name", ["rms_norm_eps", "num_hidden_layers", "vocab_size"])
def test_missing_field(name: str, folder: Path) -> None:
    edit(folder, (name,))
    fails(folder, name, "config.json", "llama")


def test_null_field(folder: Path) -> None:
    edit(folder, hidden_size=None)
    fails(folder, "hidden_size", "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["'longrope'", "yarn"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["'linear'", "factor"]),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            ["'yarn'", "truncate"],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_features_that_are_not_computed(
    changes: dict[str, Any], words: list[str], folder: Path
) -> None:
    edit(folder, **changes)
    fails(folder, *words)


@pytest.mark.parametrize(
    "changes", [{"hidden_activation": "relu"}, {"use_bidirectional_attention": True}]
)
def test_gemma3_features_that_are_not_computed(changes: dict[str, Any], tmp_path: Path) -> None:
    make(tmp_path, gemma3())
    edit(tmp_path, **changes)
    fails(tmp_path, *changes)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (llama(), {"rms_norm_eps": 1e-3}),
        (llama(), {"rope_parameters": {"rope_type": "default", "rope_theta": 10500.0}}),
        (llama(), {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 1.1}}),
        (gemma3(), {"sliding_window": 21}),
        (gemma3(), {"query_pre_attn_scalar": 25}),
        (gemma3(), {"final_logit_softcapping": 300.0}),
        (gemma3(), {"layer_types": ["full_attention"] + ["sliding_attention"] * 5}),
    ],
    ids=["epsilon", "theta", "scaling", "window", "scale", "softcap", "layer types"],
)
def test_control_a_slightly_wrong_setting_exceeds_the_bound(
    config: PretrainedConfig, changes: dict[str, Any], tmp_path: Path
) -> None:
    oracle, _ = make(tmp_path, config)
    agrees(tmp_path, oracle)
    edit(tmp_path, **changes)
    with pytest.raises(AssertionError, match="is off by"):
        agrees(tmp_path, oracle)


def test_sizes_are_odd_enough() -> None:
    """Else a wrong stride or a vector tail could stay hidden."""
    assert VOCAB % 16 and SIZES["intermediate_size"] % 32
