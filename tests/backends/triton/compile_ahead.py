"""Compiles kernels ahead for a GPU that need not be there: Triton's driver is a stand-in, so its
compiler runs and nothing is launched. Prints what happened, one fact a line."""

import sys
from types import SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from inferplane.hw import DeviceInfo, TorchDevice
from inferplane_triton import compilation
from inferplane_triton.kernels import rowwise, sampling

launched: list[str] = []
late: list[str] = []
here: list[str] = []
"""kernels that this process compiled itself"""


def loaded(name: str, *rest: Any) -> tuple[int, int, int, int, int]:
    return 1, 1, 0, 0, 1024


class StandIn:
    """What Triton asks of a driver; tensors are on the CPU."""

    utils = SimpleNamespace(
        load_binary=loaded, get_device_properties=lambda device: {"max_shared_mem": 1 << 17}
    )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(*arguments: Any) -> None:
            launched.append(source.fn.fn.__name__)

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(*, src: Any, cache_hit: bool, **others: Any) -> None:
    if not cache_hit:
        here.append(src.fn.fn.__name__)


def glu(width: int) -> None:
    x = torch.zeros(2, 2 * width)
    rowwise.glu[2, 1](x, x, width, GELU=False, BLOCK=16, PDL=False)


def rms(block: int) -> None:
    x = torch.zeros(2, 64)
    rowwise.rms[2,](
        x, x, x, 64, 64, 64, EPSILON=1e-5, OFFSET=0.0, CAST_FIRST=True, BLOCK=block, PDL=False
    )


def main() -> None:
    driver.set_active(StandIn())
    knobs.compilation.listener = compiled
    compilation.Compiler._enter = lambda self: None  # type: ignore[method-assign]
    compiler = compilation.Compiler(
        TorchDevice(DeviceInfo(backend="triton", torch_device="cpu", name="stand-in"))
    )
    reports: list[tuple[int, int]] = []
    with compiler.collect():
        for width in (16, 16, 32, 3):  # 3 is not divisible by 16: another kernel
            glu(width)
        next(iter(compiler._kernels.values())).result()  # threads do compile meanwhile
        rms(64)
        rms(63)  # not a power of two: cannot be compiled
    print("launched while collecting", launched)
    compiler.finish(lambda done, of: reports.append((done, of)))
    print("reports", reports, "compiled here", here)
    print("hook", knobs.runtime.jit_cache_hook)

    def note(*, fn: Any, **others: Any) -> bool:
        late.append(fn.name)
        return False

    knobs.runtime.jit_cache_hook = note
    for width in (16, 32, 3):
        glu(width)
    rms(64)
    print("launched", launched, "compiled late", late)
    try:
        rms(63)
    except Exception as error:
        print("broken", type(error).__name__, "compiled late", len(late))
    sampling.embed[2, 1](
        torch.zeros(2, dtype=torch.int32), torch.zeros(4, 16), torch.zeros(2, 16), 16, 16,
        SCALE=1.0, BLOCK=16, PDL=False,
    )  # fmt: skip
    print("not collected", launched[-1], "compiled late", len(late))
    try:
        with compiler.collect():
            glu(48 + 1)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        print("given up", compiler._pool, compiler._kernels, knobs.runtime.jit_cache_hook is note)
    here.clear()
    for block, sys.executable in ((128, "/nowhere/python"), (256, "/bin/true")):
        with compiler.collect():
            rms(block)
        compiler.finish(lambda done, of: None)
        print("without a process", here)


if __name__ == "__main__":
    main()
