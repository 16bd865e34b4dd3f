"""The contract's ops on the kernels: right within each op's tolerance, and honest about limits."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inferplane.hw import DeviceInfo
from inferplane.hw.kv import CANONICAL, KVSpec, LayerKV, from_stored
from inferplane.hw.op import Bound, OpImpl, Reject, Support
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.kv import KVOpSpec, RopeWriteSpec
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.rope import RopeSpec
from inferplane.hw.quantization import Scheme
from inferplane_xeon import plugin
from inferplane_xeon.ops import implementations

pytest.importorskip("inferplane_xeon._kernels", reason="the kernels are not built")
INFO = DeviceInfo(backend="xeon", torch_device="cpu", name="test", arch="avx2")
DEVICE: Any = plugin.create_device(INFO, {})
SCHEMES = (
    Scheme(weight="int8", activation="int8"),
    Scheme(weight="int4", group=32, asymmetric=True, activation="int8"),
    Scheme(weight="int4", group=32),
    Scheme(weight="float8_e4m3fn", activation="float8_e4m3fn", static=True),
)
LAYOUTS = {layout.id: layout for layout in (CANONICAL, plugin.HEAD_MAJOR)}


class Context:
    """Builds ops: natively, or by reference."""

    def __init__(self, kv: KVSpec | None, native: bool) -> None:
        self.device = DEVICE
        self.native = native
        self.handle = None
        if kv is not None:
            layout = LAYOUTS[kv.layout]
            self.handle = LayerKV(layout, kv, layout.alloc(64, kv, DEVICE).zero_())

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        return torch.full(tuple(shape), float("nan"), dtype=getattr(torch, dtype))

    def kv(self, layer: int) -> LayerKV:
        assert self.handle is not None
        return self.handle

    def bind(self, op: str, spec: Any) -> Bound:
        own = native(op, spec) if self.native else None
        return (own or TABLE[op].reference).build(spec, self)


def native(op: str, spec: Any) -> OpImpl | None:
    """Ours for a spec."""
    able = (impl for name, impl in implementations() if name == op)
    return next((i for i in able if isinstance(i.supports(spec, DEVICE), Support)), None)


def widened(value: Any) -> Any:
    """A spec with all its types float64, or a tensor in float64."""
    if isinstance(value, Tensor):
        value = from_stored(value)
        return value.double() if value.is_floating_point() else value
    if not is_dataclass(value) or not hasattr(value, "__dataclass_fields__"):
        return value
    names = {f.name for f in fields(value)}
    if not names & {"dtype", "kv", "rope", "norm"}:
        return value
    changed = {n: widened(getattr(value, n)) for n in names & {"kv", "rope", "norm"}}
    return replace(value, **changed, **({"dtype": "float64"} if "dtype" in names else {}))


def outcome(op: str, spec: Any, inputs: dict[str, Any], native: bool) -> list[Tensor]:
    """Results, and the cache behind them."""
    context = Context(getattr(spec, "kv", None), native)
    bound = context.bind(op, spec)
    inputs = dict(inputs)
    handle = context.handle
    if "kv" in inputs and handle is not None:
        canonical = inputs.pop("kv")
        handle.data = handle.layout.alloc(canonical.shape[1], handle.spec, DEVICE)
        handle.layout.import_pages(handle.data, torch.arange(canonical.shape[1]), canonical)
    if bound.prepack:
        weights = {k: inputs.pop(k) for k in ("weight", "bias") if k in inputs}
        inputs["packed"] = bound.prepack(*weights.values())
        result = bound.run(inputs.pop("x"), inputs.pop("packed"))
    else:
        result = bound.run(**inputs)
    results = [] if result is None else list(result) if isinstance(result, tuple) else [result]
    if handle is not None and op != "attention.paged":
        results += map(from_stored, handle.layout.split(handle.data))
    return results


def kv(dtype: str, layout: str, **changes: Any) -> KVSpec:
    return KVSpec(
        **{
            "num_kv_heads": 2,
            "head_dim": 64,
            "dtype": dtype,
            "page_size": 16,
            "layout": layout,
            **changes,
        }
    )


def specs(dtype: str, layout: str) -> list[tuple[str, Any]]:
    pages = kv(dtype, layout)
    rope = RopeSpec(head_dim=64, rotary_dim=64, max_position=512, theta=1e4, dtype=dtype)
    norm = RMSNormSpec(dim=64, dtype=dtype, epsilon=1e-6)
    attention = AttentionSpec(layer=0, group=0, num_heads=6, kv=pages, dtype=dtype, scale=0.125)
    linear = LinearSpec(in_features=96, out_features=100, dtype=dtype)
    gated = GatedLinearSpec(in_features=96, size=100, dtype=dtype)
    return [
        ("attention.paged", attention),
        ("attention.paged", replace(attention, window=40, softcap=20.0, group=1)),
        ("attention.paged", replace(attention, sinks=True, determinism="batch")),
        ("attention.paged", replace(attention, kv=kv("int8", layout))),
        ("attention.paged", replace(attention, kv=kv("int8", layout, head_dim=72), window=9)),
        ("kv.write", KVOpSpec(layer=0, kv=pages)),
        ("kv.write", KVOpSpec(layer=0, kv=kv("int8", layout))),
        ("rope", rope),
        ("rope", replace(rope, style="gptj", rotary_dim=32)),
        ("qk_norm_rope_kvwrite", RopeWriteSpec(layer=0, num_heads=6, kv=pages, rope=rope)),
        (
            "qk_norm_rope_kvwrite",
            RopeWriteSpec(layer=0, num_heads=6, kv=pages, rope=rope, norm=norm),
        ),
        ("norm.rms", replace(norm, dim=100)),
        ("norm.rms", replace(norm, offset=1.0, cast_first=False)),
        ("norm.add_rms", replace(norm, dim=576)),
        ("activation.glu", GluSpec(size=100, dtype=dtype)),
        ("activation.glu", GluSpec(size=64, dtype=dtype, activation="gelu_tanh")),
        ("linear", linear),
        ("linear", replace(linear, bias=True, determinism="batch")),
        ("logits", LogitsSpec(dim=96, vocab=1000, dtype=dtype)),
        ("logits", LogitsSpec(dim=96, vocab=1000, dtype=dtype, softcap=30.0)),
        *(("linear", replace(linear, bias=True, scheme=scheme)) for scheme in SCHEMES),
        ("linear.glu", gated),
        ("linear.glu", replace(gated, size=48, activation="gelu_tanh")),
        *(("linear.glu", replace(gated, scheme=scheme)) for scheme in SCHEMES),
        *(
            ("logits", LogitsSpec(dim=96, vocab=1000, dtype=dtype, softcap=9.0, scheme=scheme))
            for scheme in SCHEMES
        ),
        ("embedding", EmbeddingSpec(vocab=99, dim=100, dtype=dtype)),
        ("embedding", EmbeddingSpec(vocab=99, dim=64, dtype=dtype, scale=7.3)),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_op_is_within_its_tolerance(dtype: str, layout: str) -> None:
    for op, spec in specs(dtype, layout):
        assert native(op, spec)
        for seed in range(3):
            inputs = TABLE[op].inputs(spec, seed)
            wide = {k: widened(v) for k, v in inputs.items()}
            limit = TABLE[op].tolerance(spec)
            got = outcome(op, spec, inputs, native=True)
            want = outcome(op, widened(spec), wide, native=False)
            assert len(got) == len(want)
            for x, y in zip(got, want, strict=True):
                difference = (x.double() - y).abs()
                assert bool((difference <= limit.absolute + limit.relative * y.abs()).all()), op
                assert difference.norm() <= limit.norm * y.norm(), op


@pytest.mark.parametrize("op", sorted({op for op, _ in specs("bfloat16", "head_major")}))
def test_inputs_are_not_changed(op: str) -> None:
    for name, spec in specs("bfloat16", "head_major"):
        if name == op:
            inputs = TABLE[op].inputs(spec, 1)
            before = {k: v.clone() for k, v in inputs.items() if isinstance(v, Tensor)}
            outcome(op, spec, inputs, native=True)
            assert all(torch.equal(before[k], inputs[k]) for k in before if k != "kv")


@pytest.mark.parametrize("scheme", [None, *SCHEMES], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_gated_product_has_the_bits_of_its_parts(
    isa: str, dtype: str, scheme: Scheme | None
) -> None:
    for size, rows, kind in ((96, 1, "silu"), (100, 9, "silu"), (8, 70, "gelu_tanh")):
        activation: Any = kind
        spec = GatedLinearSpec(
            in_features=96, size=size, dtype=dtype, activation=activation, scheme=scheme
        )
        weight = TABLE["linear.glu"].inputs(spec, size)["weight"]
        x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows))
        x = x.to(getattr(torch, dtype))
        context, results = Context(None, native=True), []
        for impl in (native("linear.glu", spec), TABLE["linear.glu"].reference):
            assert impl
            bound = impl.build(spec, context)
            assert bound.prepack
            results.append(bound.run(x, bound.prepack(weight)))
        assert torch.equal(*results)
        assert results[0].isfinite().all()


def test_float16_goes_into_int8_pages_too() -> None:
    spec = KVOpSpec(layer=0, kv=kv("int8", "head_major"))
    slot, x = torch.tensor([20, 3], dtype=torch.int32), torch.randn(2, 2, 64).half()
    ours, reference = Context(spec.kv, native=True), Context(spec.kv, native=False)
    for context in (ours, reference):
        context.bind("kv.write", spec).run(x, x, slot)
    assert torch.equal(ours.kv(0).data, reference.kv(0).data)


def test_a_replaced_cache_is_seen() -> None:
    spec = KVOpSpec(layer=0, kv=kv("float32", "head_major"))
    context = Context(spec.kv, native=True)
    handle = context.kv(0)
    run = context.bind("kv.write", spec).run
    key = torch.ones(1, 2, 64)
    run(key, key, torch.tensor([20], dtype=torch.int32))
    first, handle.data = handle.data, torch.zeros_like(handle.data)
    run(key, key, torch.tensor([20], dtype=torch.int32))
    assert torch.equal(first, handle.data)


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(264, 264), (1024, 64), (64, 33)])
def test_heads_that_rope_cannot_turn(head_dim: int, rotary_dim: int) -> None:
    """It turns them in a buffer of its own."""
    spec = RopeSpec(
        head_dim=head_dim, rotary_dim=rotary_dim, max_position=8, theta=1e4, dtype="float32"
    )
    verdict = dict(implementations())["rope"].supports(spec, DEVICE)
    assert isinstance(verdict, Reject)
    assert verdict.code == "shape"


def test_limits_are_told() -> None:
    attend = dict(implementations())["attention.paged"]
    spec = AttentionSpec(
        layer=0, group=0, num_heads=2, kv=kv("bfloat16", "canonical"), dtype="bfloat16", scale=1.0
    )
    cases = {
        "dtype": [
            replace(spec, dtype="float16", kv=kv("float16", "canonical")),
            replace(spec, kv=kv("float32", "canonical")),
            replace(spec, kv=kv("float8_e4m3fn", "canonical")),
        ],
        "shape": [replace(spec, kv=kv("bfloat16", "canonical", head_dim=dim)) for dim in (12, 264)],
        "layout": [replace(spec, kv=kv("bfloat16", "opaque"))],
        "feature": [replace(spec, tree=True)],
    }
    for code, wrong in cases.items():
        for each in wrong:
            verdict = attend.supports(each, DEVICE)
            assert isinstance(verdict, Reject)
            assert verdict.code == code
            assert verdict.reason
    dense = LinearSpec(in_features=8, out_features=8, dtype="float32")
    quantized = replace(dense, scheme=Scheme(weight="int8"))
    for each, name in ((dense, "xeon.linear"), (quantized, "xeon.quant_linear")):
        found = native("linear", each)
        assert found
        assert found.name == name
    assert native("linear", replace(quantized, dtype="float16")) is None
