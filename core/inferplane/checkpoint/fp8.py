"""quant_method fp8: `weight` in float8_e4m3fn with one scale in `weight_scale`, or a scale for
each block in `weight_scale_inv` (as DeepSeek-V3 and Qwen3 publish it; w = scale * q in both)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.words import exempt, setting
from inferplane.errors import ModelError
from inferplane.hw.quantization import QuantizedWeight, Scheme

if TYPE_CHECKING:
    from torch import Tensor


class Fp8:
    def __init__(self, settings: dict[str, Any]) -> None:
        static = setting(settings, "activation_scheme", "dynamic", "static") == "static"
        setting(settings, "fmt", None, "e4m3", "float8_e4m3fn")
        self._exempt = settings.get("modules_to_not_convert") or settings.get("ignored_layers")
        block = settings.get("weight_block_size")
        rows, group = (0, 0) if block is None else _sizes(block)
        if block and static:
            raise ModelError("quantization_config has static activations with blocks of weights")
        self._scheme = Scheme(
            weight="float8_e4m3fn",
            rows=rows,
            group=group,
            activation="float8_e4m3fn",
            activation_group=group,
            static=static,
        )

    def scheme(self, module: str) -> Scheme | None:
        return None if exempt(module, self._exempt) else self._scheme

    def read(self, scheme: Scheme, parts: "Mapping[str, Tensor]") -> QuantizedWeight:
        values = float8(parts["weight"])
        scale = parts["weight_scale_inv" if scheme.rows else "weight_scale"].float()
        return QuantizedWeight(
            scheme=scheme,
            values=values,
            scale=scale if scheme.rows else scale.reshape(-1, 1),
            input_scale=parts["input_scale"].float().reshape(1) if scheme.static else None,
        )


def _sizes(block: Any) -> tuple[int, int]:
    try:
        rows, group = (int(size) for size in block)
    except (TypeError, ValueError):
        rows = group = 0
    if min(rows, group) < 1:
        raise ModelError(f"quantization_config has weight_block_size {block!r}, must be 2 sizes")
    return rows, group


def float8(values: "Tensor") -> "Tensor":
    import torch

    if values.dtype != torch.float8_e4m3fn or values.ndim != 2:
        raise ValueError(f"is {values.dtype} {list(values.shape)}, not a float8_e4m3fn matrix")
    return values
