"""Quantized models through the whole engine: every checkpoint format and every --quantization
against the same model with the numbers that its weights stand for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import inferplane.hw as hw
from inferplane.checkpoint.source import ModelSource, open_model
from inferplane.cli.explain import render
from inferplane.config import Config
from inferplane.engine import open_engine
from inferplane.explain import Explanation, explain
from inferplane.hw.op import describe
from inferplane.hw.ops import TABLE
from inferplane.hw.quantization import Scheme, dequantize, quantize
from inferplane.plugins import Plugins
from inferplane.runner.schemes import scheme_named
from tests.core.checkpoint.packing import FORMATS
from tests.core.checkpoint.test_checkpoint_gguf_model import PARTS as GGUF_PARTS
from tests.core.checkpoint.test_checkpoint_gguf_model import gguf_name, interleave
from tests.models.families import SIZES, VOCAB, llama
from tests.models.oracle import Oracle, make
from tests.models.serving import ReferenceBackend, Served, ask, random_prompt

PROMPT = random_prompt(40, VOCAB)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}


class Kernel:
    """The reference under a name of its own, for some schemes."""

    def __init__(self, op: str, serves: Callable[[Scheme], bool]) -> None:
        self.name = "kernels.product"
        self._reference, self._serves = TABLE[op].reference, serves

    def supports(self, spec: Any, device: hw.Device) -> hw.Support | hw.Reject:
        if spec.scheme and not self._serves(spec.scheme):
            return hw.Reject("feature", f"no kernel for {describe(spec.scheme)}")
        return hw.Support(priority=60, invariance="batch")

    def build(self, spec: Any, ctx: hw.BuildContext) -> hw.Bound:
        return self._reference.build(spec, ctx)


def plugins(serves: Callable[[Scheme], bool] | None, int8_inputs: bool = False) -> Plugins:
    """A backend with kernels for the schemes that `serves` takes; None: only the references."""

    class Backend(ReferenceBackend):
        @staticmethod
        @hw.impl
        def op_impls(device: hw.Device) -> list[tuple[str, hw.OpImpl]]:
            ops = () if serves is None else ("linear", "logits")
            return [(op, Kernel(op, serves or bool)) for op in ops]

        @staticmethod
        @hw.impl
        def hints(device: hw.Device) -> hw.Hints:
            return hw.Hints(int8_inputs=int8_inputs)

    made = Plugins()
    made.register("plain", Backend)
    return made


SETTINGS: dict[str, Any] = {"device": "plain", "dtype": "float32", "kv_cache_tokens": 2048}


def serve(source: ModelSource, found: Plugins, **settings: Any) -> Served:
    config = Config(**({"model": source.name} | SETTINGS | settings))
    return Served(open_engine(config, source, found))


def explained(source: ModelSource, found: Plugins, **settings: Any) -> Explanation:
    return explain(Config(**({"model": source.name} | SETTINGS | settings)), source, found)


def every(scheme: Scheme) -> bool:
    return True


def schemes(served: Served) -> Mapping[str, set[Scheme | None]]:
    """op -> the schemes of its products"""
    made: dict[str, set[Scheme | None]] = {"linear": set(), "logits": set()}
    for op, spec in served.engine.loaded.resolver.decisions:
        if op in made:
            made[op].add(spec.scheme)
    return made


def logits(served: Served) -> torch.Tensor:
    served.run([ask("a", PROMPT, 1)])
    return torch.stack(list(served.logits("a").values()))


def rewrite(folder: Path, oracle: Oracle, name: str) -> None:
    """Turn a checkpoint into a quantized one, and the oracle's weights to what its are now."""
    settings, pack = FORMATS[name]
    tensors, weights = load_file(folder / "model.safetensors"), oracle.model.state_dict()
    for full in [n for n in tensors if n.split(".")[-2] in LINEAR]:
        parts, meant = pack(tensors.pop(full))
        weights[full].copy_(meant)
        tensors |= {full.removesuffix("weight") + kind: t for kind, t in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


@pytest.mark.parametrize("name", FORMATS)
def test_each_checkpoint_format(name: str, tmp_path: Path) -> None:
    """hidden_size 64: k_proj and v_proj have 32 rows, which share a block of 128 with others."""
    oracle, _ = make(tmp_path, llama(intermediate_size=128, num_hidden_layers=2))
    rewrite(tmp_path, oracle, name)
    source = open_model(str(tmp_path))
    stored = serve(source, plugins(every), input_quantization="none")
    answers = stored.run([ask("a", PROMPT, 4)])
    oracle.check(stored, "a", answers["a"])
    assert None not in schemes(stored)["linear"]
    assert schemes(stored)["logits"] == {None}
    dense = serve(source, plugins(every), quantization="none")
    answers = dense.run([ask("a", PROMPT, 4)])
    oracle.check(dense, "a", answers["a"])
    assert schemes(dense)["linear"] == {None}


@pytest.mark.parametrize("name", ["int8", "fp8-channel", "fp8-static", "fp8-blocks"])
def test_inputs_are_quantized_as_the_checkpoint_says(name: str, tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(intermediate_size=128, num_hidden_layers=1))
    rewrite(tmp_path, oracle, name)
    served = serve(open_model(str(tmp_path)), plugins(every))
    assert all(s and s.activation for s in schemes(served)["linear"])
    off = (logits(served) - oracle.logits(PROMPT)).abs().max()
    assert 1e-3 < off < 1.5  # of logits with standard deviation 3


def write_gguf(path: Path, oracle: Oracle, kinds: Mapping[str, str], head: str = "F32") -> None:
    """Random blocks of the given types, by the last name of a module ("": all others), whose
    numbers become the oracle's weights."""
    config, weights = oracle.model.config, oracle.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rng = np.random.default_rng(0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module = name.split(".")[-2]
        default = kinds[""] if module in LINEAR else "F32"
        kind = kinds.get(module, head if module in ("embed_tokens", "lm_head") else default)
        if kind == "F32":
            plain = weight.numpy()
            plain = interleave(plain, heads[module]) if module in heads else plain
            writer.add_tensor(gguf_name(name, GGUF_PARTS), plain)
            continue
        tag = gguf.GGMLQuantizationType[kind]
        raw = random_blocks(rng, tag, weight.shape, float(weight.std()))
        meant = gguf.dequantize(raw, tag)
        if module in heads:
            order = interleave(np.arange(len(meant)), heads[module])
            turned = np.empty_like(meant)
            turned[order] = meant
            meant = turned
        weight.copy_(torch.from_numpy(meant))
        writer.add_tensor(gguf_name(name, GGUF_PARTS), raw, raw_dtype=tag)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(rng: Any, tag: Any, shape: tuple[int, ...], spread: float) -> Any:
    """Random bytes with scales such that the values have about a standard deviation."""
    block, size = gguf.GGML_QUANT_SIZES[tag]
    raw = rng.integers(0, 256, (shape[0], shape[1] // block * size), dtype=np.uint8)
    by_block = raw.reshape(-1, size)
    scale_at = {"Q6_K": 208}.get(tag.name, 0)
    steps = {"Q4_0": 4.6, "Q4_1": 4.6, "Q5_0": 9.2, "Q8_0": 74, "Q6_K": 1400}.get(tag.name, 200)
    half = np.float16(spread / steps).tobytes()
    by_block[:, scale_at : scale_at + 2] = np.frombuffer(half, np.uint8)
    if tag.name in ("Q4_1", "Q4_K", "Q5_K"):
        low = -7.5 * spread / 4.6 if tag.name == "Q4_1" else spread / steps * 7
        by_block[:, 2:4] = np.frombuffer(np.float16(low).tobytes(), np.uint8)
    return raw


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_each_gguf_type(kind: str, tied: bool, tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(**WIDE, tie_word_embeddings=tied))
    write_gguf(tmp_path / "x.gguf", oracle, {"": kind}, head=kind)
    served = serve(open_model(str(tmp_path / "x.gguf")), plugins(every))
    answers = served.run([ask("a", PROMPT, 4)])
    oracle.check(served, "a", answers["a"])
    assert schemes(served)["linear"] == schemes(served)["logits"]
    assert None not in schemes(served)["linear"]


def test_q_k_and_v_of_different_types_share_a_product(tmp_path: Path) -> None:
    """As in files that are called Q4_K_M."""
    oracle, _ = make(tmp_path, llama(**WIDE))
    write_gguf(tmp_path / "x.gguf", oracle, {"": "Q4_K", "v_proj": "Q6_K", "down_proj": "Q6_K"})
    served = serve(open_model(str(tmp_path / "x.gguf")), plugins(every))
    answers = served.run([ask("a", PROMPT, 4)])
    oracle.check(served, "a", answers["a"])
    int4 = Scheme(weight="int4", group=32, asymmetric=True)
    int8 = Scheme(weight="int8", group=16)
    both = Scheme(weight="int8", group=16, asymmetric=True)
    assert schemes(served)["linear"] == {int4, int8, both}


def test_a_product_of_dense_and_quantized_weights_is_dense(tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(**WIDE))
    write_gguf(tmp_path / "x.gguf", oracle, {"": "Q8_0", "k_proj": "F32"})
    served = serve(open_model(str(tmp_path / "x.gguf")), plugins(every))
    answers = served.run([ask("a", PROMPT, 4)])
    oracle.check(served, "a", answers["a"])
    assert schemes(served)["linear"] == {None, Scheme(weight="int8", group=32)}
    reason = served.engine.loaded.config.chosen_by["quantization"]
    assert "6 products stay weight=int8 group=32" in reason
    assert "2 become dense: weights of one product are stored in different ways" in reason


def test_schemes_without_a_kernel_become_dense(tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(**WIDE))
    write_gguf(tmp_path / "x.gguf", oracle, {"": "Q4_0", "down_proj": "Q8_0"}, head="Q8_0")
    source = open_model(str(tmp_path / "x.gguf"))
    plain = serve(source, plugins(None))
    assert schemes(plain) == {"linear": {None}, "logits": {None}}
    assert plain.engine.loaded.config.quantization == "none"
    assert (
        "no kernel for weight=int4 group=32" in plain.engine.loaded.config.chosen_by["quantization"]
    )
    answers = plain.run([ask("a", PROMPT, 4)])
    oracle.check(plain, "a", answers["a"])
    some = serve(source, plugins(lambda scheme: scheme.weight == "int8"))
    int8 = Scheme(weight="int8", group=32)
    assert schemes(some) == {"linear": {None, int8}, "logits": {int8}}
    assert some.engine.loaded.config.quantization == "auto"
    asked = serve(source, plugins(None), quantization="int4")
    coarse = Scheme(weight="int4", group=128, asymmetric=True)  # of what is stored in 8 bits
    assert schemes(asked)["linear"] == {coarse, Scheme(weight="int4", group=32)}
    forced = serve(source, plugins(every), op=["linear=reference"])  # the same numbers as kernels
    assert schemes(forced)["linear"] == {int8, Scheme(weight="int4", group=32)}


@pytest.mark.parametrize("name", ["fp8", "fp8-block", "int8", "int4"])
def test_a_dense_checkpoint_is_quantized_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    oracle, source = make(tmp_path, llama(num_hidden_layers=2, intermediate_size=128))
    served = serve(source, plugins(None), quantization=name, input_quantization="none")
    made = schemes(served)
    assert None not in made["linear"]
    assert made["logits"] == {None}
    plain = oracle.logits(PROMPT)
    for full, weight in oracle.model.state_dict().items():
        if full.split(".")[-2] in LINEAR:
            scheme = scheme_named(name, weight.shape[1])
            weight.copy_(dequantize(quantize(weight, scheme), "float32"))
    oracle.known.clear()
    answers = served.run([ask("a", PROMPT, 4)])
    oracle.check(served, "a", answers["a"])
    assert (oracle.logits(PROMPT) - plain).abs().max() > 1e-3
    assert served.engine.loaded.config.chosen_by.get("quantization") is None  # the user did


@pytest.mark.parametrize(
    ("settings", "kernels", "int8_inputs", "quantized"),
    [
        ({"quantization": "int8"}, every, True, True),
        ({"quantization": "int4"}, every, True, True),
        ({"quantization": "int8"}, every, False, False),
        ({"quantization": "int8", "input_quantization": "none"}, every, True, False),
        ({"quantization": "int4"}, lambda scheme: scheme.weight == "int4", True, False),
        ({"quantization": "fp8"}, every, True, False),
        ({}, every, True, False),
    ],
)
def test_a_dense_head_becomes_int8_where_the_device_rounds_inputs(
    settings: dict[str, str],
    kernels: Callable[[Scheme], bool],
    int8_inputs: bool,
    quantized: bool,
    tmp_path: Path,
) -> None:
    _, source = make(tmp_path, llama(num_hidden_layers=1))
    served = serve(source, plugins(kernels, int8_inputs=int8_inputs), **settings)
    head = Scheme(weight="int8", activation="int8") if quantized else None
    assert schemes(served)["logits"] == {head}


def test_a_quantized_file_can_be_quantized_in_another_way(tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(**WIDE))
    write_gguf(tmp_path / "x.gguf", oracle, {"": "Q4_1"}, head="Q8_0")
    source = open_model(str(tmp_path / "x.gguf"))
    served = serve(source, plugins(every), quantization="int8")
    assert schemes(served)["linear"] == {Scheme(weight="int8", activation="int8")}
    assert schemes(served)["logits"] == {Scheme(weight="int8", group=32)}  # as stored
    assert (logits(served) - oracle.logits(PROMPT)).abs().max() < 1.0


def test_whose_word_counts_for_inputs(tmp_path: Path) -> None:
    _, source = make(tmp_path, llama(num_hidden_layers=1))
    int4 = Scheme(weight="int4", group=64, asymmetric=True)  # of 64 inputs
    per_token = Scheme(weight="int4", group=64, asymmetric=True, activation="int8")
    rounded = replace(per_token, activation_group=64)

    def first(found: Plugins, **settings: Any) -> Scheme | None:
        served = serve(source, found, quantization="int4", **settings)
        return next(s for s in schemes(served)["linear"] if s and s.group == 64)

    assert first(plugins(every)) == int4
    assert first(plugins(every, int8_inputs=True)) == rounded
    assert first(plugins(every, int8_inputs=True), input_quantization="none") == int4
    assert first(plugins(every), input_quantization="int8") == rounded

    def tokens(scheme: Scheme) -> bool:
        return not scheme.activation_group

    assert first(plugins(tokens, int8_inputs=True)) == per_token
    assert first(plugins(tokens), input_quantization="int8") == per_token

    def only_weights(scheme: Scheme) -> bool:
        return not scheme.activation

    assert first(plugins(only_weights, int8_inputs=True)) == int4
    assert first(plugins(only_weights), input_quantization="int8") == rounded  # by reference
    hinted = serve(source, plugins(every, int8_inputs=True)).engine.loaded.config
    assert hinted.input_quantization == "int8"
    assert hinted.chosen_by["input_quantization"] == "preferred by plain"


@pytest.mark.parametrize("name", ["packed-zeros", "fp8-static", "fp8-blocks"])
def test_dummy_weights_have_the_schemes_of_the_configuration(name: str, tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(intermediate_size=128, num_hidden_layers=1))
    rewrite(tmp_path, oracle, name)
    source = open_model(str(tmp_path))
    real = schemes(serve(source, plugins(every)))
    (tmp_path / "model.safetensors").unlink()
    served = serve(source, plugins(every), load_format="dummy")
    assert schemes(served) == real
    assert logits(served).isfinite().all()


def test_explain_shows_schemes_and_counts_their_bytes(tmp_path: Path) -> None:
    oracle, _ = make(tmp_path, llama(**WIDE, tie_word_embeddings=True))
    dense = explained(open_model(str(tmp_path)), plugins(every))
    int8 = explained(open_model(str(tmp_path)), plugins(every), quantization="int8")
    write_gguf(tmp_path / "x.gguf", oracle, {"": "Q4_0"}, head="Q8_0")
    source = open_model(str(tmp_path / "x.gguf"))
    found = explained(source, plugins(every))
    values = sum(w.numel() for n, w in oracle.model.named_parameters() if "_proj" in n)
    table = VOCAB * WIDE["hidden_size"]
    assert found.weights_bytes == dense.weights_bytes - 4 * values + values // 2 + values // 8 + (
        table + table // 8  # the head beside the dense table of the embedding
    )
    rows = sum(len(w) for n, w in oracle.model.named_parameters() if "_proj" in n)
    assert int8.weights_bytes == dense.weights_bytes - 3 * values + 4 * rows
    shown = render(found)
    assert "scheme=(weight=int4 group=32" in shown
    assert "8 products stay weight=int4 group=32" in shown
    loaded = serve(source, plugins(every)).engine.loaded.config
    made = {s.name: s.value for s in found.settings}
    assert made["quantization"] == loaded.quantization == "auto"


def test_sizes_share_blocks() -> None:
    assert SIZES["hidden_size"] // 2 < 128


def test_keys_and_values_in_float8(tmp_path: Path) -> None:
    oracle, source = make(tmp_path, llama(num_hidden_layers=2))
    wide = serve(source, plugins(None), kv_cache_dtype="auto")
    served = serve(source, plugins(None), kv_cache_dtype="fp8_e4m3", max_batch_tokens=16)
    (group,) = served.engine.loaded.groups
    assert group.spec.dtype == "float8_e4m3fn"
    assert served.engine.loaded.budget.kv * 4 == wide.engine.loaded.budget.kv
    off = (logits(served) - oracle.logits(PROMPT)).abs().max()
    assert 1e-3 < off < 1.5  # of logits with standard deviation 3
    first = served.run([ask("a", PROMPT, 6)])["a"]
    again = served.run([ask("b", PROMPT, 6)])["b"]
    assert first.tokens == again.tokens
    assert again.cached_tokens
