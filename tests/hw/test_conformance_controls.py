"""The conformance check finds each kind of mistake, so that passing it means something."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from inferplane.hw import (
    Bound,
    DeviceInfo,
    OpImpl,
    Packing,
    Reference,
    Reject,
    Support,
    TorchDevice,
)
from inferplane.hw.ops import TABLE
from inferplane.testing.ops import ConformanceError, check_op, conformance_cases

CPU = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="cpu"))
Wrong = Callable[[Any, Bound, Any], Bound]
"""(spec, the right bound op, context) -> a wrong one"""


def mistaken(op: str, wrong: Wrong) -> OpImpl:
    def build(spec: Any, ctx: Any) -> Bound:
        return wrong(spec, TABLE[op].reference.build(spec, ctx), ctx)

    return Reference(build, name="test.mistaken")


def found(op: str, wrong: Wrong, dtype: str = "float32") -> str:
    """What the check says of a mistake in any of the op's cases."""
    for seed, spec in enumerate(conformance_cases(op, (dtype,))):
        try:
            check_op(CPU, op, mistaken(op, wrong), spec, seed)
        except ConformanceError as error:
            return str(error).splitlines()[0]
    return ""


def changed_spec(op: str, **values: Any) -> Wrong:
    return lambda spec, right, ctx: TABLE[op].reference.build(replace(spec, **values), ctx)


def keeping(save: Any, load: Any, form: Callable[[], str] = lambda: "plain") -> Wrong:
    """A product whose packed weights can be kept, (weight, bias)."""

    def wrong(spec: Any, right: Bound, ctx: Any) -> Bound:
        return replace(right, packing=Packing(form(), save, load))

    return wrong


def plain(packed: Any) -> dict[str, Any]:
    return {name: t for name, t in zip("wb", packed, strict=True) if t is not None}


def test_mistakes_in_keeping_packed_weights_are_found() -> None:
    def dense(wrong: Wrong) -> str:
        spec = next(s for s in conformance_cases("linear", ("float32",)) if s.bias)
        try:
            check_op(CPU, "linear", mistaken("linear", wrong), spec, 0)
        except ConformanceError as error:
            return str(error).splitlines()[0]
        return ""

    def load(kept: Any) -> Any:
        return kept["w"], kept.get("b")

    assert dense(keeping(plain, load)) == ""
    assert "weights from a file" in dense(keeping(lambda p: {"w": p[0]}, load))
    assert "weights from a file" in dense(keeping(plain, lambda kept: (kept["w"] * 2, kept["b"])))

    def spoil(kept: Any) -> Any:
        loaded = kept["w"].clone(), kept["b"].clone()
        kept["w"].zero_()
        return loaded

    assert "after the call" in dense(keeping(plain, spoil))
    forms = iter(range(99))
    assert "form" in dense(keeping(plain, load, lambda: f"build {next(forms)}"))
    assert "form" in dense(keeping(plain, load, lambda: ""))


def test_nothing_is_found_in_the_reference() -> None:
    assert found("norm.rms", lambda spec, right, ctx: right) == ""


@pytest.mark.parametrize(
    ("op", "values"),
    [
        ("attention.paged", {"scale": 0.2}),
        ("attention.paged", {"window": 0}),
        ("attention.paged", {"softcap": 0.0}),
        ("norm.rms", {"offset": 0.0}),
        ("norm.add_rms", {"epsilon": 0.1}),
        ("rope", {"style": "neox"}),
        ("rope", {"theta": 10001.0}),
        ("rope", {"scaling": "none"}),
        ("activation.glu", {"activation": "silu"}),
        ("embedding", {"scale": 1.0}),
        ("logits", {"softcap": 0.0}),
    ],
)
def test_a_wrong_parameter_is_found(op: str, values: dict[str, Any]) -> None:
    assert "exceeds" in found(op, changed_spec(op, **values))


def wrap(change: Callable[[Any], Any]) -> Wrong:
    """Change the first result."""

    def wrong(spec: Any, right: Bound, ctx: Any) -> Bound:
        def run(*args: Any, **named: Any) -> Any:
            result = right.run(*args, **named)
            if isinstance(result, tuple):
                return (change(result[0]), *result[1:])
            return change(result)

        return replace(right, run=run)

    return wrong


@pytest.mark.parametrize("op", ["linear", "attention.paged", "rope", "logits", "norm.rms"])
def test_lost_precision_is_found(op: str) -> None:
    assert "exceeds" in found(op, wrap(lambda x: x.bfloat16().float()))


def test_a_small_error_everywhere_is_found_in_low_precision() -> None:
    assert found("linear", wrap(lambda x: x * 1.03), "bfloat16")


def test_infinity_nan_shape_and_type_are_found() -> None:
    def one_nan(x: Any) -> Any:
        x = x.clone()
        x.view(-1)[0] = torch.nan
        return x

    assert "NaN" in found("linear", wrap(one_nan))
    assert "shape" in found("linear", wrap(lambda x: x[:, :1].expand_as(x)[..., None]))
    masked = wrap(lambda x: x.clamp(min=-1e30))
    assert "infinity" in found("sampling.filter", masked)


def test_an_overwritten_input_is_found() -> None:
    def inplace(spec: Any, right: Bound, ctx: Any) -> Bound:
        def run(x: Any, weight: Any) -> Any:
            y = right.run(x, weight)
            x.mul_(2)
            return y

        return Bound(run=run)

    assert "input x after the call" in found("norm.rms", inplace)


def test_arguments_that_an_op_may_overwrite_are_allowed() -> None:
    def inplace(spec: Any, right: Bound, ctx: Any) -> Bound:
        def run(x: Any, residual: Any, weight: Any) -> Any:
            y, total = right.run(x, residual, weight)
            return x.copy_(y), residual.copy_(total)

        return Bound(run=run)

    assert found("norm.add_rms", inplace) == ""


def test_dependence_on_the_batch_is_found_in_batch_mode() -> None:
    def dense(spec: Any, right: Bound, ctx: Any) -> Bound:
        def run(x: Any, packed: Any) -> Any:
            return torch.nn.functional.linear(x, *packed) + len(x) * 1e-9

        return replace(right, run=run)

    assert "bits differ" in found("linear", dense)


def test_dependence_on_chunks_is_found_in_batch_mode() -> None:
    """The reference of mode `run` is right, but not bit for bit."""
    text = found("attention.paged", changed_spec("attention.paged", determinism="run"))
    assert "bits differ" in text


def test_results_that_change_from_call_to_call_are_found() -> None:
    calls = [0]

    def drift(x: Any) -> Any:
        calls[0] += 1
        return x + calls[0] * 1e-7

    assert "bits differ" in found("norm.rms", wrap(drift))


def attention_fault(change: Callable[[Any, Any], tuple[Any, Any]]) -> str:
    def wrong(spec: Any, right: Bound, ctx: Any) -> Bound:
        return Bound(run=lambda q, batch, sinks=None: right.run(*change(q, batch), sinks))

    return found("attention.paged", wrong)


def test_faults_of_attention_are_found() -> None:
    def one_key_less(q: Any, batch: Any) -> Any:
        return q, replace(batch, seq_len=(batch.seq_len - 1).clamp(min=1))

    def other_page(q: Any, batch: Any) -> Any:
        return q, replace(batch, page_table=tuple(t.flip(1) for t in batch.page_table))

    assert attention_fault(one_key_less)
    assert attention_fault(other_page)
    assert "padding" in found(
        "attention.paged", wrap(lambda o: o + 0.0 * o + (o == 0).to(o) * 1e-9)
    )


def test_use_of_poisoned_pages_is_found() -> None:
    """Masking a NaN key by adding -inf to its score, or by weight 0 on its value, is not enough."""

    def careless(spec: Any, right: Bound, ctx: Any) -> Bound:
        handle = ctx.kv(spec.layer)

        def run(q: Any, batch: Any, sinks: Any = None) -> Any:
            out = right.run(q, batch, sinks)
            _, v = handle.layout.split(handle.data)
            return out + 0.0 * v[batch.page_table[spec.group][0].long()].sum()

        return Bound(run=run)

    assert "NaN" in found("attention.paged", careless)


def test_a_result_that_does_not_come_to_its_place_is_found() -> None:
    def placed(change: Callable[[Any], Any]) -> Wrong:
        def wrong(spec: Any, right: Bound, ctx: Any) -> Bound:
            def into(hidden: Any, weight: Any, out: Any) -> None:
                out.copy_(change(right.run(hidden, weight)))

            return replace(right, into=into)

        return wrong

    assert found("logits", placed(lambda t: t)) == ""
    assert "written to a place" in found("logits", placed(lambda t: t * (1 + 2**-20)))


def test_writes_beside_the_slots_are_found() -> None:
    def spill(spec: Any, right: Bound, ctx: Any) -> Bound:
        handle = ctx.kv(spec.layer)

        def run(k: Any, v: Any, slot: Any) -> None:
            right.run(k, v, slot)
            handle.layout.split(handle.data)[0][0, 0, 0, 0] += 1.0

        return Bound(run=run)

    assert "KV pages" in found("kv.write", spill)


def test_kernels_that_ignore_strides_are_found() -> None:
    def dense(spec: Any, right: Bound, ctx: Any) -> Bound:
        def run(k: Any, v: Any, slot: Any) -> None:
            flat = torch.as_strided(k, k.shape, torch.empty(k.shape).stride())
            right.run(flat, v, slot)

        return Bound(run=run)

    assert "strided" in found("kv.write", dense)


def test_a_wrong_draw_is_found() -> None:
    text = found("sampling.draw", wrap(lambda t: torch.where(t > 50, 0, t).int()))
    assert "drew" in text
    no_filter = found(
        "sampling.draw",
        lambda spec, right, ctx: Bound(run=lambda *a, **k: right.run(*a, unfiltered=True)),
    )
    assert "drew" in no_filter


def test_a_rejection_needs_a_reason_and_stands() -> None:
    class Silent:
        name = "test.silent"
        verdict: Any = Reject("shape", "")

        def supports(self, spec: Any, device: Any) -> Any:
            return self.verdict

        def build(self, spec: Any, ctx: Any) -> Bound:
            raise AssertionError("rejected")

    impl, spec = Silent(), conformance_cases("linear")[0]
    with pytest.raises(ConformanceError, match="reason"):
        check_op(CPU, "linear", impl, spec, 0)
    impl.verdict = Reject("shape", "too odd")
    assert check_op(CPU, "linear", impl, spec, 0) == impl.verdict
    impl.verdict = Support(invariance="run")
    batch = replace(spec, determinism="batch")
    assert isinstance(check_op(CPU, "linear", impl, batch, 0), Reject)


def test_every_op_has_cases() -> None:
    for op in TABLE:
        cases = conformance_cases(op)
        assert len(cases) >= 4
        assert len({hash(case) for case in cases}) == len(cases)
        assert {type(case) for case in cases} == {TABLE[op].spec}
