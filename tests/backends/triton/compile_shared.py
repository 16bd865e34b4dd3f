"""Builds the products of the conformance specs and of wider weights for a GPU that need not be
there, and compiles each kernel that they would launch, up to where Triton lays out shared memory:
it must be no more than shared_memory.py counts, and that no more than the device has.

A program of its own, as compile_products.py: BACKEND ARCH WARP_WIDTH BYTES.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from inferplane.hw import DeviceInfo, Reject, TorchDevice
from inferplane.hw.op import STRENGTH
from inferplane.hw.ops import TABLE
from inferplane.testing.op_run import OneOp
from inferplane.testing.ops import conformance_cases
from inferplane_triton import launch, linear, quantized, shared_memory
from inferplane_triton.kernels import gemv, nibbles, quantize, tiles
from inferplane_triton.shared_memory import Operands, Room, shared_bytes

ROWS = (16, 32, 64, 128)
"""of x, one for each tile that an op may choose"""
WIDER = ((2048, 2048), (512, 4224))
"""(in, out features) with other heights and splits than the specs"""
IRRELEVANT = {"SPLIT", "AHEAD", "HEADS", "SHARED", "DIM", "PAGE", "SINKS", "SOFTCAP"}
IRRELEVANT |= {"SPLITS_PAD", "MIXED"}
"""constants that do not change how much is held"""
DECISIVE = ("x_ptr", "w_ptr", "q_ptr", "k_ptr")
"""arguments whose types do"""
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TYPES |= {torch.float8_e4m3fn: "*fp8e4nv", torch.int8: "*i8", torch.int16: "*i16"}
TYPES |= {torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}


def kernel_constants(kernel: Any) -> list[str]:
    return [p.name for p in kernel.params if p.is_constexpr]


def laid_out(kernel: Any, given: dict[str, Any], options: dict[str, Any], on: GPUTarget) -> int:
    """Bytes of shared memory: the stages of triton.compile without the assembler's."""
    return int(lowered(kernel, given, options, on, "llir")[1]["shared"])


def lowered(
    kernel: Any, given: dict[str, Any], options: dict[str, Any], on: GPUTarget, last: str
) -> tuple[Any, dict[str, Any]]:
    """The module after triton.compile's stage `last`, and what is known of it by then."""
    signature, constants, divisible = {}, {}, {}
    for at, name in enumerate(kernel.arg_names):
        value = given[name]
        if name in kernel_constants(kernel) or value is None:
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if signature[name] != "fp32":
            divisible[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    backend = make_backend(on)
    chosen = backend.parse_options({k: v for k, v in options.items() if k != "launch_pdl"})
    metadata, context, stages = {"target": on, **chosen.__dict__}, ir.context(), {}
    ir.load_dialects(context)
    backend.load_dialects(context)
    backend.add_stages(stages, chosen, source.language)
    functions = backend.get_codegen_implementation(chosen)
    module = source.make_ir(on, chosen, functions, backend.get_module_map(), context)
    for stage in ("ttir", "ttgir", "llir"):
        module = stages[stage](module, metadata)
        if stage == last:
            break
    return module, metadata


class Launched:
    """Takes a kernel's place: lays it out where it would be launched."""

    def __init__(self, kernel: Any, target: GPUTarget, room: Room) -> None:
        self.kernel, self.target, self.room = kernel, target, room
        self.seen: dict[Any, tuple[int, int]] = {}

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, **named: Any) -> None:
        names = self.kernel.arg_names
        given = dict(zip(names, args, strict=False)) | {k: named[k] for k in names if k in named}
        options = {k: v for k, v in named.items() if k not in names}
        given = given | {"BIAS": False, "bias_ptr": None, "WIDE": 1}
        fixed = (
            given[k] for k in kernel_constants(self.kernel) if k not in IRRELEVANT | {"WINDOW"}
        )
        types = (given[name].dtype for name in DECISIVE if given.get(name) is not None)
        key = (*types, *fixed, bool(given.get("WINDOW")), *options.values())
        if key in self.seen:
            return
        used = laid_out(self.kernel, given, options, self.target)
        counted = self.count(given, options)
        assert used <= counted <= self.room.bytes, (used, counted, self.room, key)
        self.seen[key] = used, counted

    def count(self, given: dict[str, Any], options: dict[str, Any]) -> int:
        int4 = self.kernel.__name__ == "int4"
        x, w = given["x_ptr"], given["w_ptr"]
        operands = Operands(
            w=0.5 if int4 else w.element_size(),
            x=x.element_size(),
            converted=x.dtype != w.dtype,
            dots=4 if int4 else 1,
        )
        block = 4 * given["PLANE"] if int4 else given["BLOCK"]
        cut = launch.Tile(given["ROWS"], block, stages=options["num_stages"])
        return shared_bytes(cut, given["M_PAD"], operands, self.room)


class Ignored:
    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **named: None


def specs(op: str) -> list[Any]:
    """Of one type: both have two bytes."""
    made = conformance_cases(op, ("bfloat16",))
    if op == "logits":
        return made
    schemes = {spec.scheme for spec in made}
    plain = next(spec for spec in made if spec.scheme is None)
    for width, columns in WIDER:
        wide = replace(plain, in_features=width, out_features=columns)
        made += [replace(wide, scheme=scheme) for scheme in schemes]
    return [*made, replace(wide, determinism="batch")]


def run(op: str, impl: Any, spec: Any, device: Any) -> None:
    verdict = impl.supports(spec, device)
    if isinstance(verdict, Reject) or STRENGTH[verdict.invariance] < STRENGTH[spec.determinism]:
        return
    inputs = TABLE[op].inputs(spec, 0)
    bound = impl.build(spec, OneOp(device))
    packed = bound.prepack(*(inputs[name] for name in ("weight", "bias") if name in inputs))
    for rows in ROWS:
        bound.run(inputs["x"][:1].repeat(rows, 1), packed)


def build(target: GPUTarget, room: Room) -> None:
    device = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="", arch=room.arch))
    replaced: Any = shared_memory
    replaced.room_of = lambda device: room
    replaced = launch
    replaced._ptx = lambda x: target.backend == "cuda"
    watched: list[Launched] = []
    for module, names in ((tiles, ("dense", "w8")), (nibbles, ("int4",))):
        for name in names:
            watched.append(Launched(getattr(module, name), target, room))
            setattr(module, name, watched[-1])
    ignored: Any = Ignored()
    gemv.few_rows = gemv.one_row_w8 = quantize.rows = ignored
    replaced = torch
    replaced._scaled_mm = lambda x, w, **named: x.new_empty(x.shape[0], w.shape[1])
    for module in (linear, quantized):
        for name in ("Linear", "InvariantLinear", "Logits", "InvariantLogits"):
            impl = getattr(module, name, None)
            op = "linear" if name.endswith("Linear") else "logits"
            for spec in specs(op) if impl else ():
                run(op, impl(), spec, device)
    for one in watched:
        most = max(one.seen.values(), default=(0, 0))
        print(one.kernel.__name__, len(one.seen), *most)


if __name__ == "__main__":
    backend, arch, width, limit = sys.argv[1:]
    number = int(arch) if arch.isdecimal() else arch
    name = f"sm_{arch}" if backend == "cuda" else arch
    build(GPUTarget(backend, number, int(width)), Room(int(limit), name))
