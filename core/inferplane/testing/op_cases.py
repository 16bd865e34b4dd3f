"""Specs for every op of the contract: small shapes that together use each feature."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

from inferplane.hw.kv import KVSpec
from inferplane.hw.op import Determinism
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.derive import DeriveSpec
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.kv import KVOpSpec, RopeWriteSpec
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.normed import NormLinearSpec, NormMLPSpec
from inferplane.hw.ops.rope import RopeSpec
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.hw.quantization import Scheme

DTYPES = ("float32", "bfloat16", "float16")
NARROW = ("float8_e4m3fn", "int8")
"""types of pages that hold keys and values of any type"""


def conformance_cases(op: str, dtypes: tuple[str, ...] = DTYPES) -> list[Any]:
    """Specs of one op in each type and in both strengths of determinism that users can ask for.

    Every implementation must serve or reject each of them.
    """
    modes = [mode for mode in get_args(Determinism) if mode != "none"]
    made = (replace(s, determinism=m) for t in dtypes for s in _MAKERS[op](t) for m in modes)
    return list(dict.fromkeys(made))


def _derive(dtype: str) -> Iterator[DeriveSpec]:
    for page, inplace in ((16, True), (8, True), (16, False)):
        yield DeriveSpec(page_size=page, inplace=inplace)


def _kv(heads: int, dim: int, page: int, dtype: str) -> KVSpec:
    return KVSpec(num_kv_heads=heads, head_dim=dim, dtype=dtype, page_size=page)


def _attention(dtype: str) -> Iterator[AttentionSpec]:
    for heads, kv_heads, dim, page, window, softcap, sinks in (
        (6, 2, 16, 16, 0, 0.0, False),
        (4, 4, 64, 16, 0, 0.0, False),
        (8, 1, 32, 32, 0, 0.0, False),
        (6, 2, 16, 16, 40, 0.0, False),
        (4, 1, 256, 16, 100, 0.0, False),
        (4, 2, 32, 8, 1, 20.0, False),
        (9, 3, 64, 16, 0, 30.0, True),
        (2, 2, 80, 128, 64, 0.0, True),
    ):
        plain = AttentionSpec(
            layer=1,
            group=1,
            num_heads=heads,
            kv=_kv(kv_heads, dim, page, dtype),
            dtype=dtype,
            scale=dim**-0.5,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )
        yield plain
        if (heads, window) in ((4, 0), (9, 0)):
            yield from (replace(plain, kv=replace(plain.kv, dtype=each)) for each in NARROW)
        if (heads, window) in ((6, 0), (9, 0)):
            yield from (replace(plain, tree=True, window=size) for size in (0, 5))


def _kv_op(dtype: str) -> Iterator[KVOpSpec]:
    for heads, dim, page in ((2, 16, 16), (1, 64, 8), (3, 80, 32)):
        yield KVOpSpec(layer=0, kv=_kv(heads, dim, page, dtype))
    for narrow in NARROW:
        yield KVOpSpec(layer=0, kv=_kv(2, 16, 16, narrow))


def _rope(dtype: str) -> Iterator[RopeSpec]:
    plain = RopeSpec(head_dim=32, rotary_dim=32, max_position=2048, theta=1e4, dtype=dtype)
    yield plain
    yield replace(plain, style="gptj", head_dim=64, rotary_dim=64, theta=5e5)
    yield replace(plain, rotary_dim=16)
    yield replace(plain, rotary_dim=24, style="gptj")
    yield replace(plain, scaling="linear", parameters=(8.0,))
    yield replace(plain, scaling="llama3", parameters=(8.0, 1.0, 4.0, 512.0), theta=5e5)
    yield replace(plain, scaling="yarn", parameters=(4.0, 32.0, 1.0, 512.0, 1.1386))


def _rope_write(dtype: str) -> Iterator[RopeWriteSpec]:
    for index, rope in enumerate(_rope(dtype)):
        norm = RMSNormSpec(
            dim=rope.head_dim,
            dtype=dtype,
            epsilon=1e-6,
            offset=float(index % 2),
            cast_first=index % 2 == 0,
        )
        plain = RopeWriteSpec(
            layer=0,
            num_heads=6,
            kv=_kv(1 + index % 3, rope.head_dim, (16, 8, 32)[index % 3], dtype),
            rope=rope,
            norm=norm if index != 1 else None,
        )
        yield plain
        if index < 2:
            yield from (replace(plain, kv=replace(plain.kv, dtype=each)) for each in NARROW)


def _norm(dtype: str) -> Iterator[RMSNormSpec]:
    for dim, offset, cast_first in (
        (64, 0.0, True),
        (576, 0.0, True),
        (100, 1.0, False),
        (1023, 0.0, True),
        (2304, 1.0, False),
    ):
        yield RMSNormSpec(dim=dim, dtype=dtype, epsilon=1e-5, offset=offset, cast_first=cast_first)


def _glu(dtype: str) -> Iterator[GluSpec]:
    for size, kind in ((80, "silu"), (1536, "silu"), (100, "gelu_tanh"), (2047, "gelu_tanh")):
        activation: Any = kind
        yield GluSpec(size=size, dtype=dtype, activation=activation)


def _embedding(dtype: str) -> Iterator[EmbeddingSpec]:
    for vocab, dim, scale in ((99, 48, 1.0), (1000, 100, 10.0), (64, 640, 640**0.5)):
        yield EmbeddingSpec(vocab=vocab, dim=dim, dtype=dtype, scale=scale)


def _linear(dtype: str) -> Iterator[LinearSpec]:
    for inputs, outputs, bias in (
        (64, 96, False),
        (576, 960, True),
        (99, 50, True),
        (48, 1, False),
        (384, 192, True),
        (1024, 256, False),
    ):
        yield LinearSpec(in_features=inputs, out_features=outputs, dtype=dtype, bias=bias)
    for index, scheme in enumerate(SCHEMES):
        plain = LinearSpec(in_features=256, out_features=192, dtype=dtype, scheme=scheme)
        yield replace(plain, bias=index % 2 == 0)
        if index % 3 == 0:
            yield replace(plain, in_features=352, out_features=200, bias=index % 2 == 1)


def _schemes() -> Iterator[Scheme]:
    """Those of the checkpoint formats that are read and of weights quantized at load."""
    int8, int4, fp8 = (Scheme(weight=kind) for kind in ("int8", "int4", "float8_e4m3fn"))
    weights = [int8, replace(int8, group=32), replace(int8, group=32, asymmetric=True)]
    weights += [replace(int8, group=16), int4]
    for group in (32, 64, 128):
        weights += [replace(int4, group=group), replace(int4, group=group, asymmetric=True)]
    for scheme in weights:
        yield scheme
        yield replace(scheme, activation="int8")
    yield replace(int8, activation="int8", static=True)
    yield replace(int4, group=32, activation="int8", activation_group=32)
    for scheme in (fp8, replace(fp8, rows=0)):
        yield scheme
        yield replace(scheme, activation="float8_e4m3fn")
        yield replace(scheme, activation="float8_e4m3fn", static=True)
    for rows in (1, 128):
        blocks = replace(fp8, rows=rows, group=128)
        yield blocks
        yield replace(blocks, activation="float8_e4m3fn", activation_group=128)


SCHEMES = tuple(_schemes())


def _gated(dtype: str) -> Iterator[GatedLinearSpec]:
    for inputs, size, kind in ((64, 96, "silu"), (576, 130, "silu"), (99, 40, "gelu_tanh")):
        activation: Any = kind
        yield GatedLinearSpec(in_features=inputs, size=size, dtype=dtype, activation=activation)
    for scheme in SCHEMES[::4]:
        yield GatedLinearSpec(in_features=256, size=100, dtype=dtype, scheme=scheme)


def _rounds_inputs() -> list[Scheme]:
    """One of each way in which inputs meet FP8 and INT8 weights, and weight-only INT4."""
    fp8 = Scheme(weight="float8_e4m3fn", activation="float8_e4m3fn")
    blocks = replace(fp8, rows=128, group=128, activation_group=128)
    int8 = Scheme(weight="int8", activation="int8")
    return [fp8, replace(fp8, rows=0, static=True), blocks, int8, Scheme(weight="int4", group=32)]


def _norm_linear(dtype: str) -> Iterator[NormLinearSpec]:
    for index, scheme in enumerate((None, None, *_rounds_inputs())):
        width, size = (384, 192) if index else (100, 37)
        yield NormLinearSpec(
            norm=_norm_of(width, dtype, index),
            linear=LinearSpec(
                in_features=width,
                out_features=size,
                dtype=dtype,
                bias=index % 3 == 0,
                scheme=scheme,
            ),
        )


def _norm_mlp(dtype: str) -> Iterator[NormMLPSpec]:
    for index, scheme in enumerate((None, *_rounds_inputs())):
        width, size = (256, 640) if index else (100, 37)
        activation: Any = "gelu_tanh" if index % 2 else "silu"
        down = LinearSpec(in_features=size, out_features=width, dtype=dtype, scheme=scheme)
        yield NormMLPSpec(
            norm=_norm_of(width, dtype, index),
            gated=GatedLinearSpec(
                in_features=width, size=size, dtype=dtype, activation=activation, scheme=scheme
            ),
            down=down,
        )


def _norm_of(dim: int, dtype: str, index: int) -> RMSNormSpec:
    """Llama's kind and Gemma's by turns"""
    plain = RMSNormSpec(dim=dim, dtype=dtype, epsilon=1e-5)
    return replace(plain, offset=1.0, cast_first=False) if index % 2 else plain


def _logits(dtype: str) -> Iterator[LogitsSpec]:
    for dim, vocab, softcap in ((64, 300, 0.0), (576, 1003, 0.0), (96, 500, 30.0), (256, 320, 5.0)):
        yield LogitsSpec(dim=dim, vocab=vocab, dtype=dtype, softcap=softcap)
    for scheme in SCHEMES[::5]:
        yield LogitsSpec(dim=256, vocab=320, dtype=dtype, scheme=scheme)


def _sampling(dtype: str) -> Iterator[SamplingSpec]:
    for vocab in (99, 1003):  # logits are float32 whatever the model's type
        yield SamplingSpec(vocab=vocab)


_MAKERS: dict[str, Callable[[str], Iterator[Any]]] = {
    "batch.derive": _derive,
    "attention.paged": _attention,
    "kv.write": _kv_op,
    "kv.gather": _kv_op,
    "kv.copy": _kv_op,
    "qk_norm_rope_kvwrite": _rope_write,
    "rope": _rope,
    "norm.rms": _norm,
    "norm.add_rms": _norm,
    "activation.glu": _glu,
    "embedding": _embedding,
    "linear": _linear,
    "linear.glu": _gated,
    "norm_linear": _norm_linear,
    "norm_mlp": _norm_mlp,
    "logits": _logits,
    "sampling.filter": _sampling,
    "sampling.draw": _sampling,
    "sampling.logprobs": _sampling,
}
