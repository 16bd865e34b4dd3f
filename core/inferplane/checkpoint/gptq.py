"""quant_method gptq: values of 4 or 8 bits with a zero point in each group.

`qweight` i32 [K bits / 32, N] has several rows in a word; `qzeros` i32 [K / group, N bits / 32]
several columns; `scales` [K / group, N]; `g_idx` i32 [K] the group of each row. w = scale *
(q - zero); the first version of the format stores zero - 1. Frantar et al., arXiv 2210.17323.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.words import exempt, setting, unpack_words
from inferplane.errors import ModelError
from inferplane.hw.quantization import QuantizedWeight, Scheme, pack_nibbles

if TYPE_CHECKING:
    from torch import Tensor


class Gptq:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._bits: int = setting(settings, "bits", 4, 8)
        group = setting({"group_size": -1} | settings, "group_size", -1, 32, 64, 128)
        version = setting(
            {"checkpoint_format": "gptq"} | settings, "checkpoint_format", "gptq", "gptq_v2"
        )
        self._stored_below = 1 if version == "gptq" else 0
        if settings.get("dynamic"):
            raise ModelError(
                "quantization_config of gptq has settings by module, which is not read"
            )
        self._exempt = settings.get("modules_to_not_convert")
        self._scheme = Scheme(
            weight="int4" if self._bits == 4 else "int8",
            group=max(group, 0),
            asymmetric=not setting({"sym": True} | settings, "sym", True, False),
        )

    def scheme(self, module: str) -> Scheme | None:
        return None if exempt(module, self._exempt) else self._scheme

    def read(self, scheme: Scheme, parts: "Mapping[str, Tensor]") -> QuantizedWeight:
        bits, middle = self._bits, 2 ** (self._bits - 1)
        values = unpack_words(parts["qweight"], bits, 0).t()  # [N, K]
        scale = parts["scales"].t().float().contiguous()
        zeros = unpack_words(parts["qzeros"], bits, 1).t().short() + self._stored_below
        if zeros.shape != scale.shape:
            raise ValueError(f"{list(zeros.shape)} zero points for {list(scale.shape)} scales")
        if "g_idx" in parts:
            _check_groups(parts["g_idx"], scheme.group or values.shape[1])
        if not scheme.asymmetric and bool((zeros != middle).any()):
            raise ValueError(f"quantization_config says sym, but zero points are not {middle}")
        if bits == 8:
            values, zeros = (values.short() - 128).char(), zeros - 128
        else:
            values = pack_nibbles(values)
        return QuantizedWeight(scheme, values, scale, -scale * zeros if scheme.asymmetric else None)


def _check_groups(index: "Tensor", group: int) -> None:
    """With desc_act, groups are of inputs in the order of their importance."""
    import torch

    if not torch.equal(index.long(), torch.arange(len(index), device=index.device) // group):
        raise ValueError(
            "its inputs are grouped out of order (desc_act), which is not read: take a checkpoint "
            "made without desc_act, or with group_size -1"
        )
