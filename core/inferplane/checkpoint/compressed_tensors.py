"""quant_method compressed-tensors, as LLM Compressor writes it: FP8 (float-quantized), INT8
(int-quantized) and packed integers (pack-quantized), with settings by groups of modules.

Packed values and zero points are stored with half their range added, in int32 words: values
[N, K bits / 32], zero points [N bits / 32, K / group]. w = scale * (q - zero).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.fp8 import float8
from inferplane.checkpoint.words import setting, unpack_words
from inferplane.errors import ModelError
from inferplane.hw.quantization import QuantizedWeight, Scheme, pack_nibbles

if TYPE_CHECKING:
    from torch import Tensor

FLOAT, INT, PACKED = "float-quantized", "int-quantized", "pack-quantized"


@dataclass(frozen=True, slots=True)
class Group:
    """Modules that are stored alike."""

    targets: tuple[str, ...]
    scheme: Scheme


class CompressedTensors:
    def __init__(self, settings: dict[str, Any]) -> None:
        setting(
            {"quantization_status": "compressed"} | settings, "quantization_status", "compressed"
        )
        for name in ("sparsity_config", "transform_config"):
            if settings.get(name):
                raise ModelError(f"quantization_config has a {name}, which is not read")
        self._ignore: Sequence[str] = settings.get("ignore") or ()
        groups = settings.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise ModelError(f"quantization_config has config_groups {groups!r}, must have some")
        self._groups = [_group(found, settings.get("format")) for found in groups.values()]

    def scheme(self, module: str) -> Scheme | None:
        if any(_matches(module, pattern) for pattern in self._ignore):
            return None
        named = [g for g in self._groups if any(_matches(module, t) for t in g.targets)]
        named += [g for g in self._groups if "Linear" in g.targets]
        return named[0].scheme if named else None

    def read(self, scheme: Scheme, parts: "Mapping[str, Tensor]") -> QuantizedWeight:
        scale = parts["weight_scale"].float()
        scale = scale.reshape(-1, 1) if scale.numel() == 1 else scale
        if "weight_g_idx" in parts and bool((parts["weight_g_idx"].diff() < 0).any()):
            raise ValueError("its inputs are grouped out of order (actorder), which is not read")
        offset = None
        if scheme.weight == "float8_e4m3fn":
            values = float8(parts["weight"])
        elif "weight_packed" in parts:
            values, offset = _unpack(scheme, parts, scale)
        else:
            values = parts["weight"]
            if scheme.asymmetric:
                offset = -scale * parts["weight_zero_point"]
        return QuantizedWeight(
            scheme=scheme,
            values=values,
            scale=scale,
            offset=offset,
            input_scale=parts["input_scale"].float().reshape(1) if scheme.static else None,
        )


def _unpack(
    scheme: Scheme, parts: "Mapping[str, Tensor]", scale: "Tensor"
) -> "tuple[Tensor, Tensor | None]":
    bits = 4 if scheme.weight == "int4" else 8
    rows, columns = (int(size) for size in parts["weight_shape"])
    values = unpack_words(parts["weight_packed"], bits, 1)[:, :columns]
    if len(values) != rows:
        raise ValueError(f"{len(values)} rows are packed, weight_shape says {rows}")
    offset = None
    if scheme.asymmetric:
        zeros = unpack_words(parts["weight_zero_point"], bits, 0)[:rows].short()
        if zeros.shape != scale.shape:
            raise ValueError(f"{list(zeros.shape)} zero points for {list(scale.shape)} scales")
        offset = -scale * (zeros if bits == 4 else zeros - 128)
    return pack_nibbles(values) if bits == 4 else (values.short() - 128).char(), offset


def _matches(module: str, pattern: str) -> bool:
    """A pattern is `re:` and an expression for the start of a name, or a whole name."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return module == pattern


def _group(found: dict[str, Any], default: str | None) -> Group:
    weights: dict[str, Any] = found.get("weights") or {}
    layout = found.get("format") or default
    kind = (weights.get("type"), weights.get("num_bits"), layout)
    allowed: dict[tuple[Any, Any, Any], Any] = {
        ("float", 8, FLOAT): "float8_e4m3fn",
        ("float", 8, "naive-quantized"): "float8_e4m3fn",
        ("int", 8, INT): "int8",
        ("int", 8, "naive-quantized"): "int8",
        ("int", 8, PACKED): "int8",
        ("int", 4, PACKED): "int4",
    }
    if kind not in allowed:
        raise ModelError(
            f"quantization_config has weights of type {kind[0]}, {kind[1]} bits, format {layout}; "
            "read are " + ", ".join(f"{t} {b} bits {f}" for t, b, f in allowed)
        )
    rows, group = _blocks(weights, "weights")
    scheme = {
        "weight": allowed[kind],
        "rows": rows,
        "group": group,
        "asymmetric": kind[0] == "int" and not weights.get("symmetric", True),
    }
    inputs: dict[str, Any] | None = found.get("input_activations")
    if inputs:
        scheme |= _inputs(inputs)
    return Group(tuple(found.get("targets") or ()), Scheme(**scheme))


def _blocks(weights: dict[str, Any], what: str) -> tuple[int, int]:
    """(rows, group) of a strategy"""
    strategy, group = weights.get("strategy"), weights.get("group_size")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    if strategy == "tensor":
        return 0, 0
    if strategy == "channel":
        return 1, 0
    if strategy == "group" and isinstance(group, int) and group > 0:
        return 1, group
    block = weights.get("block_structure")
    if strategy == "block" and isinstance(block, list) and len(block) == 2:
        return int(block[0]), int(block[1])
    raise ModelError(
        f"quantization_config has {what} with strategy {strategy!r} and group_size {group!r}; read "
        "are tensor, channel, group with a size, and block with a block_structure"
    )


def _inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    kind = {("float", 8): "float8_e4m3fn", ("int", 8): "int8"}
    found = kind.get((inputs.get("type"), inputs.get("num_bits")))  # type: ignore[arg-type]
    strategy, dynamic = inputs.get("strategy"), bool(inputs.get("dynamic"))
    usable = (strategy in ("token", "group") and dynamic) or strategy in (None, "tensor")
    if found is None or not usable or not inputs.get("symmetric", True):
        raise ModelError(
            f"quantization_config has input_activations {inputs}; read are symmetric float or int "
            "of 8 bits: tensor, and dynamic token or group"
        )
    group = int(inputs.get("group_size") or 0) if strategy == "group" else 0
    return {"activation": found, "activation_group": group, "static": not dynamic}
