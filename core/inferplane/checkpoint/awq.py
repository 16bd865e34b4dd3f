"""quant_method awq, version gemm: 4-bit values with a zero point in each group.

`qweight` i32 [K, N / 8] has eight columns in a word, in the order of AWQ's kernel; `qzeros`
i32 [K / group, N / 8] likewise; `scales` [K / group, N]. w = scale * (q - zero). Lin et al.,
arXiv 2306.00978.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.words import exempt, setting, unpack_words
from inferplane.hw.quantization import QuantizedWeight, Scheme, pack_nibbles

if TYPE_CHECKING:
    from torch import Tensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""the column that value i of a word belongs to"""


class Awq:
    def __init__(self, settings: dict[str, Any]) -> None:
        settings = {"bits": settings.get("w_bit")} | settings
        setting(settings, "bits", 4)
        setting(
            settings | {"version": str(settings.get("version", "gemm")).lower()}, "version", "gemm"
        )
        setting({"zero_point": True} | settings, "zero_point", True)
        group = settings.get("group_size", settings.get("q_group_size"))
        group = setting(settings | {"group_size": group}, "group_size", -1, 32, 64, 128)
        self._exempt = settings.get("modules_to_not_convert")
        self._scheme = Scheme(weight="int4", group=max(group, 0), asymmetric=True)

    def scheme(self, module: str) -> Scheme | None:
        return None if exempt(module, self._exempt) else self._scheme

    def read(self, scheme: Scheme, parts: "Mapping[str, Tensor]") -> QuantizedWeight:
        values = unpack_words(parts["qweight"], 4, 1, ORDER).t()  # [N, K]
        zeros = unpack_words(parts["qzeros"], 4, 1, ORDER).t()
        scale = parts["scales"].t().float().contiguous()
        if zeros.shape != scale.shape:
            raise ValueError(f"{list(zeros.shape)} zero points for {list(scale.shape)} scales")
        return QuantizedWeight(scheme, pack_nibbles(values), scale, -scale * zeros)
