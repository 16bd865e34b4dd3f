"""Quantized safetensors checkpoints: config.json's `quantization_config` names the method, and a
module has several tensors where a dense one has `weight`.

Each method has a file of its own that turns a module's tensors into a QuantizedWeight. Which
modules are quantized is seen from the tensors that they have, so lists of exceptions matter only
where there are no tensors (`--load-format dummy`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from inferplane.checkpoint.awq import Awq
from inferplane.checkpoint.compressed_tensors import CompressedTensors
from inferplane.checkpoint.fp8 import Fp8
from inferplane.checkpoint.gptq import Gptq
from inferplane.checkpoint.safetensors import SafetensorsTensors
from inferplane.checkpoint.staging import Staging
from inferplane.errors import ModelError
from inferplane.hw.quantization import QuantizedWeight, Scheme, dequantize

if TYPE_CHECKING:
    from torch import Tensor

MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv")
"""a module with one of these is quantized"""
PARTS = frozenset(
    "weight qweight qzeros scales g_idx weight_packed weight_scale weight_scale_inv "
    "weight_zero_point weight_shape weight_g_idx input_scale".split()
)
"""tensors that together are the weight of a quantized module"""

DENSE = ("lm_head", "embed_tokens")
"""modules that checkpoints leave dense unless they have the tensors of a quantized one"""


class Format(Protocol):
    """A quantization method with the settings of one checkpoint."""

    def scheme(self, module: str) -> Scheme | None:
        """How a module is stored; None if the configuration exempts it."""

    def read(self, scheme: Scheme, parts: "Mapping[str, Tensor]") -> QuantizedWeight:
        """A weight from its module's tensors by the last part of their names. KeyError if one
        is missing, ValueError for values that the scheme does not have."""


FORMATS: dict[str, Callable[[dict[str, Any]], Format]] = {
    "fp8": Fp8,
    "compressed-tensors": CompressedTensors,
    "awq": Awq,
    "gptq": Gptq,
}
"""quant_method -> reader of its settings, which raises ModelError for what is not read"""


def find_format(config: Mapping[str, Any]) -> Format | None:
    """The method of a config.json; None if it is of a dense checkpoint. ModelError for a method
    or a setting that is not read."""
    text = config.get("text_config") or {}
    settings = config.get("quantization_config") or text.get("quantization_config")
    if not settings:
        return None
    method = settings.get("quant_method")
    if method not in FORMATS:
        raise ModelError(
            f"quantization method {method!r} of config.json is not read, supported are "
            + ", ".join(FORMATS)
            + "; GGUF files are, too"
        )
    return FORMATS[method](settings)


def configured_scheme(config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """How a checkpoint with this config.json would store a weight."""
    found = find_format(config)

    def scheme(name: str) -> Scheme | None:
        module, _, kind = name.rpartition(".")
        if found is None or kind != "weight" or module.rpartition(".")[2] in DENSE:
            return None
        return found.scheme(module)

    return scheme


class QuantizedTensors:
    """The tensors of such a checkpoint with one name, `MODULE.weight`, for all parts of a
    quantized weight. Implements weights.QuantizedSource, StoredSource and StagedSource."""

    def __init__(self, inner: SafetensorsTensors, found: Format) -> None:
        self._inner = inner
        self._format = found
        self._modules: dict[str, dict[str, str]] = {}
        for name in inner.names():
            module, _, kind = name.rpartition(".")
            if kind in MARKS:
                self._modules[f"{module}.weight"] = {}
        self._dense: list[str] = []
        for name in inner.names():
            module, _, kind = name.rpartition(".")
            if kind in PARTS and f"{module}.weight" in self._modules:
                self._modules[f"{module}.weight"][kind] = name
            else:
                self._dense.append(name)
        self._schemes = {name: self._scheme_of(name) for name in self._modules}

    def _scheme_of(self, name: str) -> Scheme:
        scheme = self._format.scheme(name.removesuffix(".weight"))
        if scheme is None:
            raise ModelError(f"weight {name} is quantized, but quantization_config exempts it")
        return scheme

    def names(self) -> list[str]:
        return self._dense + list(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._dense) + len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._inner

    def nbytes(self, name: str) -> int:
        stored = self._modules[name].values() if name in self._modules else [name]
        return sum(self._inner.nbytes(part) for part in stored)

    def __getitem__(self, name: str) -> "Tensor":
        if name in self._modules:
            return dequantize(self.quantized(name), "float32")
        return self._inner[name]

    def identity(self) -> str | None:
        return self._inner.identity()

    def release(self) -> None:
        self._inner.release()

    def stage(self, staging: Staging) -> None:
        self._inner.stage(staging)

    def scheme(self, name: str) -> Scheme | None:
        return self._schemes.get(name)

    def quantized(self, name: str) -> QuantizedWeight:
        parts = {kind: self._inner[stored] for kind, stored in self._modules[name].items()}
        try:
            weight = self._format.read(self._schemes[name], parts)
        except KeyError as error:
            raise ModelError(
                f"weight {name} is quantized, but the checkpoint has no "
                f"{name.removesuffix('weight')}{error.args[0]}"
            ) from error
        except ValueError as error:
            raise ModelError(f"quantized weight {name}: {error}") from error
        return checked(name, weight)


def checked(name: str, weight: QuantizedWeight) -> QuantizedWeight:
    """ModelError unless the tensors have the shapes that the scheme says."""
    scheme = weight.scheme
    wanted = scheme.scale_shape(weight.out_features, weight.in_features)
    if scheme.group and weight.in_features % scheme.group and scheme.rows == 1:
        raise ModelError(
            f"weight {name}: groups of {scheme.group} do not divide its {weight.in_features} inputs"
        )
    for kind, tensor in (("scales", weight.scale), ("zero points", weight.offset)):
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ModelError(
                f"weight {name}: its {kind} have shape {list(tensor.shape)}, "
                f"[{weight.out_features}, {weight.in_features}] values need {list(wanted)}"
            )
    return weight
