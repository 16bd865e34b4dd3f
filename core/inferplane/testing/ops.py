"""The conformance check of one implementation of one op: `check_op`.

It compares with a float64 oracle and looks for what a comparison does not show: overwritten
inputs, use of pages that are not the sequence's, dependence on batch or chunks. Reference ops and
backends' kernels are checked by the same code, so a vendor's test suite is

    for op, impl in op_impls(device):
        for spec in conformance_cases(op):
            check_op(device, op, impl, spec, seed=0)
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inferplane.hw import CANONICAL, Device, KVLayout, OpImpl, Reject, Support, Tolerance
from inferplane.hw.op import STRENGTH
from inferplane.hw.ops import TABLE
from inferplane.testing.attention_check import check_attention
from inferplane.testing.compare import ConformanceError, close, identical, require
from inferplane.testing.op_cases import conformance_cases
from inferplane.testing.op_run import Built, Inputs, Outcome, oracle

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ConformanceError", "check_op", "conformance_cases"]

ROWS = {
    "linear": "x",
    "linear.glu": "x",
    "logits": "x",
    "norm.rms": "x",
    "norm.add_rms": "x residual",
    "norm_linear": "x residual",
    "norm_mlp": "x residual",
    "rope": "q k position",
    "qk_norm_rope_kvwrite": "q k v position slot",
    "kv.write": "k v slot",
    "activation.glu": "x",
    "embedding": "ids",
    "sampling.filter": "logits rows repetition frequency presence banned bitmask",
    "sampling.draw": "logits temperature top_k top_p min_p seed sample_index position bitmask",
    "sampling.logprobs": "logits ids",
}
"""arguments with one row per token or sequence; each result has one row for each, too"""

STRIDED = {"rope": "q k", "qk_norm_rope_kvwrite": "q k v", "kv.write": "k v", "norm.rms": "x"}
"""arguments that models pass as slices of a wider tensor"""


def check_op(
    device: Device, op: str, impl: OpImpl, spec: Any, seed: int, layout: KVLayout = CANONICAL
) -> Support | Reject:
    """Raises ConformanceError if `impl` misbehaves; a Reject is returned unchecked."""
    verdict = impl.supports(spec, device)
    require(verdict == impl.supports(spec, device), "supports() changes its mind")
    if isinstance(verdict, Reject):
        require(bool(verdict.reason and verdict.code), "a rejection has no reason")
        return verdict
    strong = STRENGTH[verdict.invariance] >= STRENGTH[spec.determinism]
    if not strong:
        return Reject("determinism", f"gives {verdict.invariance}")
    try:
        _check(device, op, impl, spec, seed, layout)
    except ConformanceError as error:
        raise ConformanceError(f"{impl.name} of {op}, seed {seed}: {error}\n  {spec}") from None
    return verdict


def _check(device: Device, op: str, impl: OpImpl, spec: Any, seed: int, layout: KVLayout) -> None:
    inputs = TABLE[op].inputs(spec, seed)
    built = Built(op, impl, spec, device, layout)
    done = built(inputs)
    _inputs_are_kept(op, inputs, done)
    if op == "sampling.draw":
        _agrees_on_draw(spec, inputs, done.results[0])
    else:
        _agrees(op, spec, inputs, done)
    _same_again("the same call", built(inputs), done)
    if built.bound.into is not None:
        place = done.results[0].new_full(done.results[0].shape, float("nan"))
        _same_again("the result written to a place", built(inputs, into=place), done)
    if built.bound.packing is not None:
        _can_be_kept(built, Built(op, impl, spec, device, layout), inputs, done)
    if op in STRIDED:
        _same_again("strided inputs", built(strided(op, inputs)), done)
    if op == "attention.paged":
        check_attention(built, spec, inputs, done.results[0], seed)
    elif op in ROWS:
        _rows_stand_alone(op, built, spec, inputs, done)


def _can_be_kept(built: Built, later: Built, inputs: Inputs, done: Outcome) -> None:
    """`later` is what a later start builds: it has only what `save` gave."""
    first, second = built.bound.packing, later.bound.packing
    require(first is not None and second is not None, "packing comes and goes")
    assert first is not None and second is not None
    require(bool(first.form) and first.form == second.form, "packing.form is not the same again")
    kept = built.keep(inputs)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    _same_again("weights from a file", later(inputs, kept), done)
    for name, tensor in before.items():
        identical(f"{name} of the weights from a file after the call", kept[name], tensor)


def _inputs_are_kept(op: str, inputs: Inputs, done: Outcome) -> None:
    for name, value in inputs.items():
        if name in TABLE[op].mutates or name not in done.given or not hasattr(value, "shape"):
            continue
        identical(f"input {name} after the call", done.given[name], value)


def _agrees(op: str, spec: Any, inputs: Inputs, done: Outcome) -> None:
    tolerance = TABLE[op].tolerance(spec)
    wanted = oracle(op, spec, inputs)
    require(len(done.results) == len(wanted.results), f"{len(done.results)} results")
    for index, (got, true) in enumerate(zip(done.results, wanted.results, strict=True)):
        close(f"result {index}", got, true, tolerance)
    if done.kv is not None and wanted.kv is not None:
        close("KV pages", done.kv, wanted.kv, _of_pages(spec, tolerance))


def _of_pages(spec: Any, tolerance: Tolerance) -> Tolerance:
    """Values that an op computes may be rounded to the neighbour in float8, one step away; in
    int8, where half a step is lost, they are below 10."""
    if not tolerance.relative:
        return tolerance
    if spec.kv.dtype == "int8":
        return Tolerance(relative=0.0, absolute=10 / 127 + tolerance.absolute, norm=2.0**-6)
    if spec.kv.dtype != "float8_e4m3fn":
        return tolerance
    return Tolerance(relative=2.0**-3, absolute=2.0**-9 + tolerance.absolute, norm=2.0**-4)


def _agrees_on_draw(spec: Any, inputs: Inputs, got: "Tensor") -> None:
    """Each token is one that the oracle draws for inputs within rounding of the given ones."""
    import torch

    allowed = torch.zeros(*inputs["logits"].shape, dtype=torch.bool)
    rows = torch.arange(len(allowed))
    generator = torch.Generator().manual_seed(1)
    for scale in (0.0, 1e-5, 1e-5, 1e-5, -1e-5, -1e-5, -1e-5):
        noise = torch.randn(inputs["logits"].shape, generator=generator) * abs(scale)
        near = inputs | {
            "logits": inputs["logits"] + noise,
            "top_p": torch.where(inputs["top_p"] < 1, inputs["top_p"] + scale, 1.0),
            "min_p": inputs["min_p"] * (1 + 10 * scale),
        }
        allowed[rows, oracle("sampling.draw", spec, near).results[0].long()] = True
    require(bool(allowed[rows, got.long()].all()), f"drew {got.tolist()}")


def _same_again(what: str, again: Outcome, done: Outcome) -> None:
    for index, (got, first) in enumerate(zip(again.results, done.results, strict=True)):
        identical(f"{what}, result {index}", got, first)
    if again.kv is not None and done.kv is not None:
        identical(f"{what}, KV pages", again.kv, done.kv)


def strided(op: str, inputs: Inputs) -> Inputs:
    """The same values with a gap between tokens, as in a slice of a fused projection."""
    import torch

    made = dict(inputs)
    for name in STRIDED[op].split():
        value = inputs[name]
        wide = torch.full((*value.shape[:-1], value.shape[-1]), float("nan"), dtype=value.dtype)
        wide = torch.cat([wide.flatten(1), value.flatten(1), wide.flatten(1)], dim=1)
        size = value[0].numel()
        made[name] = wide[:, size : 2 * size].view_as(value)
    return made


def _rows_stand_alone(op: str, built: Built, spec: Any, inputs: Inputs, done: Outcome) -> None:
    """Any selection of rows gives those rows: bit for bit in batch mode, else within tolerance."""
    import torch

    names = [name for name in ROWS[op].split() if inputs.get(name) is not None]
    count = len(inputs[names[0]])
    generator = torch.Generator().manual_seed(count)
    several = torch.randint(count, (301,), generator=generator)
    writes = op in ("kv.write", "qk_norm_rope_kvwrite")
    selections = [torch.tensor([count - 1]), torch.arange(count).flip(0), several]
    if writes:
        selections[2] = torch.randperm(count, generator=generator)[: count // 2 + 1]
    selections.append(torch.zeros(0, dtype=torch.long))
    one = TABLE[op].tolerance(spec)
    loose = replace(one, relative=2 * one.relative, absolute=2 * one.absolute, norm=2 * one.norm)
    for rows in selections:
        some = built(inputs | {name: inputs[name][rows] for name in names})
        for index, (got, all_rows) in enumerate(zip(some.results, done.results, strict=True)):
            what = f"rows {rows.tolist()[:6]} alone, result {index}"
            if spec.determinism == "batch" or op == "sampling.draw":
                identical(what, got, all_rows[rows])
            else:
                close(what, got, all_rows[rows], loose)
