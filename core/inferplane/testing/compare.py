"""Comparing results: with an oracle within a tolerance, and bit for bit."""

from typing import TYPE_CHECKING

from inferplane.hw import Tolerance

if TYPE_CHECKING:
    from torch import Tensor


class ConformanceError(Exception):
    """An implementation does not do what its op says."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise ConformanceError(what)


def close(what: str, got: "Tensor", wanted: "Tensor", tolerance: Tolerance) -> None:
    """Integers are equal; floats as the tolerance says, with infinities and NaN in equal places."""
    require(got.shape == wanted.shape, f"{what}: shape {list(got.shape)}, not {list(wanted.shape)}")
    if not got.is_floating_point():
        require(bool((got == wanted).all()), f"{what}: integers differ")
        return
    got, wanted = got.double(), wanted.double()
    finite = wanted.isfinite()
    same = got.equal(wanted) or bool(
        ((got == wanted) | finite | (got.isnan() & wanted.isnan())).all()
    )
    require(same and bool(got[finite].isfinite().all()), f"{what}: infinity or NaN")
    got, wanted = got[finite], wanted[finite]
    error = (got - wanted).abs()
    excess = error - (tolerance.absolute + tolerance.relative * wanted.abs())
    if error.numel():
        worst = int(excess.argmax())
        require(
            float(excess[worst]) <= 0,
            f"{what}: {float(got[worst])} for {float(wanted[worst])} exceeds {tolerance}",
        )
        norm = float(error.norm() / wanted.norm().clamp(min=1e-30))
        quiet = float(error.max()) <= tolerance.absolute  # nothing but values near zero
        require(norm <= tolerance.norm or quiet, f"{what}: norm of error {norm} > {tolerance.norm}")


def identical(what: str, got: "Tensor", wanted: "Tensor") -> None:
    """The same bits, NaN included."""
    import torch

    equal = got.shape == wanted.shape and got.dtype == wanted.dtype
    if equal:
        a, b = (x.contiguous().view(torch.uint8) if x.dim() else x for x in (got, wanted))
        equal = a.equal(b)
    require(equal, f"{what}: bits differ")
