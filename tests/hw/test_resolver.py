"""Which implementation is chosen, and what is said about the others."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from inferplane.errors import ConfigError, ResolveError
from inferplane.hw import CANONICAL, DeviceInfo, KVSpec, Reject, StridedLayout, Support, TorchDevice
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.quantization import Scheme
from inferplane.resolver import Resolver, parse_overrides

CPU = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="cpu"))
LINEAR = LinearSpec(in_features=8, out_features=4, dtype="float32")
KV = KVSpec(num_kv_heads=8, head_dim=256, dtype="bfloat16", page_size=128)
ATTENTION = AttentionSpec(
    layer=0, group=0, num_heads=32, kv=KV, dtype="bfloat16", scale=0.0625, softcap=50.0
)


@dataclass
class Kernel:
    """Answers `supports` with what it was given."""

    name: str
    verdict: Any
    asked: list[Any] = field(default_factory=list)

    def supports(self, spec: Any, device: Any) -> Any:
        self.asked.append(spec)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def build(self, spec: Any, ctx: Any) -> Any:
        raise AssertionError("not built here")


def kernels(op: str, **verdicts: Any) -> list[tuple[str, Any]]:
    """Kernel acme.x for each x=verdict; a number is a priority."""
    return [
        (op, Kernel(f"acme.{n}", Support(priority=v) if isinstance(v, int) else v))
        for n, v in verdicts.items()
    ]


def resolver(impls: list[tuple[str, Any]], *overrides: str, **more: Any) -> Resolver:
    return Resolver(CPU, impls, parse_overrides(list(overrides)), **more)


def chosen(impls: list[tuple[str, Any]], *overrides: str, spec: Any = LINEAR, **more: Any) -> str:
    op = "linear" if spec is LINEAR or isinstance(spec, LinearSpec) else "attention.paged"
    return resolver(impls, *overrides, **more).resolve(op, spec).chosen.name


def codes(impls: list[tuple[str, Any]], *overrides: str, spec: Any = LINEAR, **more: Any) -> Any:
    op = "linear" if isinstance(spec, LinearSpec) else "attention.paged"
    decision = resolver(impls, *overrides, **more).resolve(op, spec)
    return {n: v.code for n, v in decision.verdicts if isinstance(v, Reject)}


def test_the_highest_priority_wins_and_the_first_of_equals() -> None:
    assert chosen([]) == "reference"
    assert chosen(kernels("linear", a=10, b=60, c=60, d=20)) == "acme.b"
    assert chosen(kernels("linear", a=0)) == "acme.a"
    assert chosen(kernels("linear", a=Reject("shape", "odd"), b=1)) == "acme.b"
    assert chosen(kernels("logits", a=90)) == "reference"


def extending(impls: list[tuple[str, Any]], *overrides: str, **spec: Any) -> tuple[str, str | None]:
    found = resolver(impls, *overrides).resolve("attention.paged", replace(ATTENTION, **spec))
    return found.chosen.name, found.extend[0].name if found.extend else None


def test_attention_of_several_tokens_a_sequence_may_be_another_one() -> None:
    both = kernels("attention.paged", a=60, b=Support(priority=40, extend=70, invariance="batch"))
    assert extending(both) == ("acme.a", "acme.b")
    assert extending(both, "attention.paged=acme.a") == ("acme.a", None)
    assert extending(both, "attention.paged=acme.b") == ("acme.b", None)
    assert extending(both, determinism="batch") == ("acme.b", None)
    assert extending(kernels("attention.paged", a=60, b=Support(extend=59))) == ("acme.a", None)
    alone = kernels("attention.paged", a=Support(priority=50, extend=20))
    assert extending(alone) == ("acme.a", None)
    worse = kernels("attention.paged", a=Support(priority=50, extend=20), b=30)
    assert extending(worse) == ("acme.a", "acme.b")
    linear = kernels("linear", a=60, b=Support(priority=40, extend=70))
    assert resolver(linear).resolve("linear", LINEAR).extend is None


def test_each_spec_is_decided_once_and_its_uses_are_counted() -> None:
    impls = kernels("linear", a=10)
    made = resolver(impls)
    first = made.resolve("linear", LINEAR)
    assert made.resolve("linear", replace(LINEAR)) is first
    made.resolve("linear", replace(LINEAR, bias=True))
    assert (first.uses, len(impls[0][1].asked), len(made.decisions)) == (2, 2, 2)


def test_every_candidate_s_answer_is_kept() -> None:
    impls = kernels("linear", a=Reject("dtype", "only bfloat16"), b=30)
    decision = resolver(impls).resolve("linear", LINEAR)
    assert decision.support == Support(priority=30)
    assert [n for n, _ in decision.verdicts] == ["acme.a", "acme.b", "reference"]
    assert decision.verdicts[0][1] == Reject("dtype", "only bfloat16")


@pytest.mark.parametrize(
    ("asked", "gives", "fits"),
    [
        ("none", "none", True),
        ("run", "none", False),
        ("run", "run", True),
        ("run", "batch", True),
        ("batch", "run", False),
        ("batch", "batch", True),
    ],
)
def test_determinism_is_a_filter(asked: Any, gives: Any, fits: bool) -> None:
    impls = kernels("linear", a=Support(priority=99, invariance=gives))
    spec = replace(LINEAR, determinism=asked)
    assert chosen(impls, spec=spec) == ("acme.a" if fits else "reference")
    assert codes(impls, spec=spec) == ({} if fits else {"acme.a": "determinism"})


def test_recording_is_a_filter() -> None:
    impls = kernels("linear", a=Support(capture="no"), b=Support(priority=1, capture="plan"))
    assert chosen(impls) == "acme.a"
    assert chosen(impls, capture=True) == "acme.b"
    assert codes(impls, capture=True) == {"acme.a": "capture"}


def test_layout_and_page_size_are_filters() -> None:
    impls = kernels(
        "attention.paged",
        a=Support(page_sizes=(16, 32)),
        b=Support(layouts=("packed",)),
        c=Support(priority=5, page_sizes=(128,), layouts=("packed", "canonical")),
    )
    assert chosen(impls, spec=ATTENTION) == "acme.c"
    assert codes(impls, spec=ATTENTION) == {"acme.a": "page_size", "acme.b": "layout"}


def test_pages_are_what_the_best_kernel_wants() -> None:
    packed = StridedLayout(id="packed", order="htd")
    impls = kernels(
        "attention.paged",
        a=Support(priority=70, page_sizes=(64,), layouts=("packed",)),
        b=Support(priority=60),
    )
    made = resolver(impls)
    assert made.choose_pages(ATTENTION, [packed, CANONICAL], [16, 64]) == (packed, 64)
    assert made.choose_pages(ATTENTION, [CANONICAL], [16, 64]) == (CANONICAL, 16)
    assert made.choose_pages(ATTENTION, [packed, CANONICAL], [32]) == (packed, 32)
    assert made.decisions == {}
    only_reference = resolver(impls, "attention.paged=reference")
    assert only_reference.choose_pages(ATTENTION, [packed], [8]) == (packed, 8)
    with pytest.raises(ResolveError, match="no KV layout"):
        made.choose_pages(ATTENTION, [], [16])
    strict = resolver(kernels("attention.paged", a=Support(page_sizes=(64,))), require_native=True)
    with pytest.raises(ResolveError, match=r"page_size\]: 16 not in"):
        strict.choose_pages(ATTENTION, [CANONICAL], [16, 32])


def test_pages_without_views_are_only_for_ops_that_name_the_layout() -> None:
    opaque = StridedLayout(id="blocked", strided=False)
    impls = kernels("attention.paged", a=Support(priority=70), b=Support(layouts=("blocked",)))
    made = resolver(impls)
    assert made.choose_pages(ATTENTION, [opaque], [16]) == (opaque, 16)
    spec = replace(ATTENTION, kv=replace(KV, layout="blocked", opaque=True))
    assert chosen(impls, spec=spec) == "acme.b"
    assert codes(impls, spec=spec) == {"acme.a": "layout", "reference": "layout"}
    with pytest.raises(ResolveError, match="strided views"):
        resolver([]).choose_pages(ATTENTION, [opaque], [16])


def test_an_override_by_name() -> None:
    impls = [*kernels("linear", a=10, b=60), *kernels("logits", z=5)]
    assert chosen(impls, "linear=acme.a") == "acme.a"
    assert codes(impls, "linear=acme.a") == {"acme.b": "override", "reference": "override"}
    assert chosen(impls, "linear=reference") == "reference"
    assert chosen(impls, "*=reference") == "reference"
    assert chosen(impls, "*=reference", "linear=acme.a") == "acme.a"
    assert chosen(impls, "*=acme.z") == "acme.b"  # which linear has not


def test_an_override_that_cannot_be() -> None:
    rejected = kernels("linear", a=Reject("shape", "N is 4, not a multiple of 16"), b=60)
    with pytest.raises(ResolveError) as caught:
        resolver(rejected, "linear=acme.a").resolve("linear", LINEAR)
    assert str(caught.value) == (
        "no implementation of linear\n"
        "  spec: in_features=8 out_features=4 dtype=float32 determinism=run\n"
        "  acme.a               rejected[shape]: N is 4, not a multiple of 16\n"
        "  acme.b               rejected[override]: --op asks for acme.a\n"
        "  reference            rejected[override]: --op asks for acme.a\n"
        "  try: leave out --op, or name another implementation"
    )


def refusal(*overrides: str, impls: Any = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        resolver(list(impls), *overrides).resolve("linear", LINEAR)
    return str(caught.value)


def test_overrides_that_are_mistakes() -> None:
    impls = kernels("linear", a=1)
    assert refusal("liner=reference").startswith("--op liner: no such op; the ops are attention.")
    assert refusal("linear=acme.b", impls=impls) == (
        "--op linear=acme.b: no such implementation here; there are ['acme.a', 'reference']"
    )
    assert refusal("*=refrence", impls=impls) == (
        "--op *=refrence: no such implementation here; there are ['acme.a', 'reference']"
    )
    for item in ("linear", "=reference", "linear="):
        assert refusal(item) == (f"--op {item}: write OP=IMPLEMENTATION, e.g. linear=reference")


def with_attention(name: str, *overrides: str) -> Resolver:
    impls = kernels(
        "attention.paged",
        attention=60,
        flash=50,
        gone=Reject("library", "not installed: pip install gone"),
    )
    return resolver(impls, *overrides, attention=name)


def test_attention_is_chosen_by_its_short_name() -> None:
    for name, impl in (
        ("auto", "acme.attention"),
        ("acme", "acme.attention"),
        ("flash", "acme.flash"),
        ("acme.flash", "acme.flash"),
        ("reference", "reference"),
    ):
        made = with_attention(name)
        assert made.resolve("attention.paged", ATTENTION).chosen.name == impl
        assert made.resolve("linear", LINEAR).chosen.name == "reference"
    verdicts = dict(with_attention("flash").resolve("attention.paged", ATTENTION).verdicts)
    assert verdicts["reference"] == Reject("override", "--attention-backend asks for acme.flash")
    with pytest.raises(ConfigError) as caught:
        with_attention("flesh")
    assert str(caught.value) == (
        "--attention-backend flesh: cpu has none of this name; "
        "there are auto, acme, flash, gone, reference"
    )
    with pytest.raises(ConfigError, match="say the same thing: leave one of them out"):
        with_attention("flash", "attention.paged=reference")


def test_attention_that_is_asked_for_and_not_possible() -> None:
    with pytest.raises(ResolveError) as caught:
        with_attention("gone").resolve("attention.paged", ATTENTION)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "--attention-backend gone: not installed: pip install gone; "
        "possible here: auto, acme, flash, reference"
    )
    assert lines[-1] == "  try: leave out --attention-backend, or name another implementation"
    with pytest.raises(ResolveError, match=r"^--attention-backend gone: not installed"):
        with_attention("gone").choose_pages(ATTENTION, [CANONICAL], [16, 32])


def test_strict_mode_names_every_candidate() -> None:
    impls = kernels(
        "attention.paged",
        fia=Reject("feature", "softcap not supported"),
        atb=Reject("shape", "head_dim 256 not in {64, 128, 192}"),
    )
    with pytest.raises(ResolveError) as caught:
        resolver(impls, require_native=True).resolve("attention.paged", ATTENTION)
    assert str(caught.value) == (
        "no implementation of attention.paged for layer 0 (strict mode)\n"
        "  spec: num_heads=32 kv=(num_kv_heads=8 head_dim=256 dtype=bfloat16 page_size=128 "
        "layout=canonical) dtype=bfloat16 scale=0.0625 softcap=50.0 determinism=run\n"
        "  acme.fia             rejected[feature]: softcap not supported\n"
        "  acme.atb             rejected[shape]: head_dim 256 not in {64, 128, 192}\n"
        "  reference            rejected[strict]: --require-native allows no fallback\n"
        "  try: --op attention.paged=reference (slow), or leave out --require-native"
    )


def test_strict_mode_takes_what_the_user_asks_for_and_composites_of_native_parts() -> None:
    assert chosen(kernels("linear", a=1), require_native=True) == "acme.a"
    assert chosen([], "linear=reference", require_native=True) == "reference"
    made = resolver([], require_native=True)
    from inferplane.testing.op_cases import conformance_cases

    spec = conformance_cases("norm.add_rms")[0]
    assert made.resolve("norm.add_rms", spec).chosen.name == "reference"
    with pytest.raises(ResolveError, match="strict"):
        made.resolve("norm.rms", spec)


def test_a_spec_that_even_the_reference_lacks() -> None:
    with pytest.raises(ResolveError) as caught:
        resolver([]).resolve("linear", replace(LINEAR, in_features=7, scheme=Scheme(weight="int4")))
    assert "reference            rejected[shape]: int4 packs two in_features in a byte" in str(
        caught.value
    )
    assert str(caught.value).endswith("try: another --device, or a model without this feature")


def test_a_kernel_that_raises_is_not_chosen_and_stops_nobody() -> None:
    impls = kernels("linear", a=RuntimeError("no compiler"), b=3)
    decision = resolver(impls).resolve("linear", LINEAR)
    assert decision.chosen.name == "acme.b"
    assert decision.verdicts[0][1] == Reject("error", "supports: RuntimeError: no compiler")


def test_an_op_that_the_contract_lacks() -> None:
    with pytest.raises(ResolveError, match=r"acme.a implements liner, which the contract lacks"):
        resolver(kernels("liner", a=1))


def test_fallbacks_are_named() -> None:
    made = resolver(kernels("linear", a=Reject("shape", "odd")))
    assert made.fallbacks() == []
    made.resolve("linear", LINEAR)
    made.resolve("attention.paged", ATTENTION)
    assert made.fallbacks() == ["attention.paged", "linear"]
    assert resolver([]).fallbacks() == []
