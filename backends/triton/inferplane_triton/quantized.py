"""linear and logits over quantized weights: FP8 and INT8 (with or without quantized inputs) and
INT4 weight-only.

One row of FP8 or INT8 runs without matrix units and quantizes its input on the way, where that is
faster; otherwise one small kernel quantizes the input before. Many rows of FP8 go to the library's
product where it has one, many rows of INT4 are multiplied by a part of W at a time that was turned
back to the op's type and still is in L2. As the kernel depends on the number of rows, so do the
last bits.
"""

from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.op import describe
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.quantization import QuantizedWeight
from inferplane_triton import launch, tuning
from inferplane_triton.attention import overlapped
from inferplane_triton.linear import finished, scratch_for
from inferplane_triton.packed import Bytes, Nibbles, pack_bytes, pack_nibbles, problem
from inferplane_triton.shared_memory import Operands, fitting

if TYPE_CHECKING:
    from torch import Tensor

NIBBLES_FEW = 128
"""rows of x up to which INT4 weights are multiplied from the nibbles (estimated)"""
PART_BYTES = 32 << 20
"""of dequantized weights at a time: less than the L2 of the GPUs that this is for (H100: 50 MB)"""
KEY = "triton.dequantized"


def size_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def has_fp8(arch: str) -> bool:
    """NVIDIA from Ada on; AMD's e4m3fn (not its fnuz variant) from gfx950 on."""
    if arch.startswith("sm_"):
        return int(arch[3:]) >= 89
    return arch in ("gfx950", "gfx1200", "gfx1201")


def _supports(
    spec: LinearSpec | LogitsSpec, device: Device, columns: int, width: int
) -> Support | Reject:
    if spec.scheme is None:
        return Reject("feature", "dense weights are triton.linear's")
    if spec.dtype not in ("bfloat16", "float16"):
        return Reject("dtype", f"{spec.dtype} is not bfloat16 or float16")
    wrong = problem(spec.scheme, width, columns)
    if wrong:
        return wrong
    fp8 = spec.scheme.weight == "float8_e4m3fn"
    if fp8 and not has_fp8(device.info.arch):
        return Reject("hardware", f"{device.info.arch or device.info.name} has no float8_e4m3fn")
    return Support(priority=60, invariance="run", notes=describe(spec.scheme))


class BytesProduct:
    """x @ W.T + bias with FP8 or INT8 weights"""

    def __init__(self, spec: LinearSpec | LogitsSpec, columns: int, width: int, ctx: BuildContext):
        import torch

        assert spec.scheme is not None
        self.group = spec.scheme.activation_group
        self._torch_device = ctx.device.info.torch_device
        self._blocked = bool(spec.scheme.group)
        self._input = getattr(torch, spec.scheme.activation) if spec.scheme.activation else None
        self._pdl = bool(overlapped(ctx.device)["PDL"])
        self._type = getattr(torch, spec.dtype)
        self._row = tuning.bytes_row(columns, width, bool(self._input), self._pdl)
        x = 1 if self._input else size_of(spec.dtype)
        fit = fitting(Operands(w=1, x=x, converted=not self._input), ctx.device)
        self._few = [
            (rows, fit(tuning.bytes_few(rows, columns, width, self._blocked, self._pdl), rows))
            for rows in (32, tuning.FEW)
        ]
        many = tuning.bytes_many(columns, self._pdl)
        self._many = fit(many, many.most)
        self._scratch = scratch_for(self._few, columns, ctx)
        # row-wise scales of the library's product come with bfloat16 results only
        self._library = (
            spec.scheme.activation == "float8_e4m3fn"
            and not self._blocked
            and spec.dtype == "bfloat16"
            and ctx.device.info.arch.startswith("sm_")
        )

    def prepack(self, weight: QuantizedWeight) -> Bytes:
        return pack_bytes(weight)

    def rounds(self, rows: int) -> bool:
        """Whether the product of so many rows itself quantizes its inputs on the way."""
        return rows == 1 and self._row is not None

    def __call__(self, x: "Tensor", w: Bytes, bias: "Tensor | None") -> "Tensor":
        x = x.contiguous()
        rows = x.shape[0]
        if rows == 1 and self._row:
            y = x.new_empty((rows, w.values.shape[0]))
            launch.w8_row(x, w, bias, y, self._row)
            return y
        if self._input and rows:
            return self.multiply(*self.quantize(x, w), w, bias)
        return self.multiply(x, None, w, bias)

    def multiply(
        self, x: "Tensor", scale: "Tensor | None", w: Bytes, bias: "Tensor | None"
    ) -> "Tensor":
        """x [M, K] with its scale as `quantize` gives them, or plain without"""
        rows = x.shape[0]
        if scale is not None and rows > tuning.FEW and self._library:
            return self._scaled_mm(x, scale, w, bias)
        y = x.new_empty((rows, w.values.shape[0]), dtype=self._type)
        if rows:
            cut = next((few for most, few in self._few if rows <= most), self._many)
            launch.w8_tiles(x, scale, w, bias, y, cut, self._scratch())
        return y

    def outputs(self, rows: int, width: int) -> "tuple[Tensor, Tensor]":
        """Where quantized inputs [rows, width] and their scales go."""
        import torch

        groups = width // self.group if self.group else 1
        where = self._torch_device
        q = torch.empty((rows, width), dtype=self._input, device=where)
        return q, torch.empty((rows, groups), dtype=torch.float32, device=where)

    def quantize(self, x: "Tensor", w: Bytes) -> "tuple[Tensor, Tensor]":
        q, scale = self.outputs(*x.shape)
        launch.quantize_rows(x, q, scale, w.input_scale, self.group, self._pdl)
        return q, scale

    def _scaled_mm(self, q: "Tensor", scale: "Tensor", w: Bytes, bias: "Tensor | None") -> "Tensor":
        import torch

        return torch._scaled_mm(
            q, w.values.T, scale_a=scale, scale_b=w.scale[None], bias=bias,
            out_dtype=torch.bfloat16,
        )  # fmt: skip


class NibblesProduct:
    """x @ W.T + bias with INT4 weights"""

    def __init__(self, spec: LinearSpec | LogitsSpec, columns: int, width: int, ctx: BuildContext):
        assert spec.scheme is not None
        self._device = ctx.device
        plane = min(spec.scheme.group or width, 128)
        pdl = bool(overlapped(ctx.device)["PDL"])
        size = size_of(spec.dtype)
        fit = fitting(Operands(w=0.5, x=size, converted=True, dots=4), ctx.device)
        self._few = [
            (rows, fit(tuning.nibbles_few(rows, columns, width, plane, pdl), rows))
            for rows in (16, tuning.FEW, NIBBLES_FEW)
        ]
        self._scratch = scratch_for(self._few, columns, ctx)
        self._part = max(64, min(columns, PART_BYTES // (size * width) // 64 * 64))
        self._bytes = size * self._part * width
        self._device.workspace(KEY, self._bytes)

    def prepack(self, weight: QuantizedWeight) -> Nibbles:
        return pack_nibbles(weight)

    def __call__(self, x: "Tensor", w: Nibbles, bias: "Tensor | None") -> "Tensor":
        import torch

        x = x.contiguous()
        rows, width = x.shape
        columns = w.numbers.shape[0]
        y = x.new_empty((rows, columns))
        if rows == 0:
            return y
        few = next((few for most, few in self._few if rows <= most), None)
        if few:
            launch.int4_tiles(x, w, bias, y, few, self._scratch())
            return y
        held = self._device.workspace(KEY, self._bytes)[: self._bytes].view(x.dtype)
        for first in range(0, columns, self._part):
            last = min(first + self._part, columns)
            part = held[: (last - first) * width].view(last - first, width)
            launch.dequantize_rows(w, first, part)
            torch.mm(x, part.T, out=y[:, first:last])
        return y if bias is None else y.add_(bias)


def _product(spec: LinearSpec | LogitsSpec, columns: int, width: int, ctx: BuildContext) -> Any:
    assert spec.scheme is not None
    kind = NibblesProduct if spec.scheme.weight == "int4" else BytesProduct
    return kind(spec, columns, width, ctx)


class Linear:
    name = "triton.quantized"

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, spec.out_features, spec.in_features)

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        product = _product(spec, spec.out_features, spec.in_features, ctx)

        def prepack(weight: QuantizedWeight, bias: "Tensor | None" = None) -> Any:
            return product.prepack(weight), bias

        def run(x: "Tensor", packed: Any) -> "Tensor":
            out: Tensor = product(x, packed[0], packed[1])
            return out

        return Bound(run=run, prepack=prepack)


class Logits:
    name = "triton.quantized"

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, spec.vocab, spec.dim)

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        product = _product(spec, spec.vocab, spec.dim, ctx)

        def run(hidden: "Tensor", weight: Any) -> "Tensor":
            return finished(product(hidden, weight, None), spec.softcap)

        def into(hidden: "Tensor", weight: Any, out: "Tensor") -> None:
            out.copy_(run(hidden, weight) if spec.softcap else product(hidden, weight, None))

        return Bound(run=run, into=into, prepack=product.prepack)
