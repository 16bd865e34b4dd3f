"""Integers packed into int32 words, as INT4 checkpoints have them, and reading of settings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inferplane.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def unpack_words(words: "Tensor", bits: int, dim: int, order: Sequence[int] = ()) -> "Tensor":
    """int32 -> u8 with 32 / `bits` times the size along `dim`, lowest bits first; `order[i]` is the
    place of value i of a word, if not i. ValueError if the words are not a matrix of int32."""
    import torch

    if words.dtype != torch.int32 or words.ndim != 2:
        raise ValueError(
            f"packed values are {words.dtype} {list(words.shape)}, not an int32 matrix"
        )
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    if order:
        shifts = shifts[torch.tensor(order, device=words.device).argsort()]
    values = (words.unsqueeze(2) >> shifts) & (2**bits - 1)  # [a, b, n]
    values = values.to(torch.uint8)
    flat: Tensor = values.flatten(1) if dim == 1 else values.transpose(1, 2).flatten(0, 1)
    return flat


def setting(settings: Mapping[str, Any], name: str, *allowed: Any) -> Any:
    """A field of quantization_config that must have one of these values; ModelError if not."""
    value = settings.get(name)
    if value not in allowed:
        raise ModelError(
            f"quantization_config of {settings.get('quant_method')} has {name} {value!r}, read are "
            + ", ".join(map(repr, allowed))
        )
    return value


def exempt(module: str, patterns: Sequence[str] | None) -> bool:
    """Whether a list such as modules_to_not_convert names a module, in full or in part."""
    parts = module.split(".")
    return any(
        module == pattern or pattern in parts or module.startswith(f"{pattern}.")
        for pattern in patterns or ()
    )
