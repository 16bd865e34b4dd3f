"""Attention of eager steps of many sizes, nothing compiled or launched: prints how many kernels
Triton would compile for them. Each takes seconds, in which requests wait."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver

from inferplane.hw import DeviceInfo, TorchDevice
from inferplane.hw.ops import TABLE
from inferplane.testing.op_run import Built
from inferplane.testing.ops import conformance_cases
from inferplane_triton import attention
from tests.backends.triton.compile_ahead import StandIn


def main() -> None:
    driver.set_active(StandIn())
    replaced: Any = attention
    replaced.core_count = lambda device: 132
    wanted: set[tuple[str, str]] = set()

    def note(*, key: str, fn: Any, **others: Any) -> bool:
        wanted.add((fn.name, key))
        return True

    knobs.runtime.jit_cache_hook = note
    made = conformance_cases("attention.paged", ("bfloat16",))
    spec = next(s for s in made if not s.window and not s.sinks)
    device = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="", arch="sm_90"))
    built = Built("attention.paged", attention.PagedAttention(), spec, device)
    inputs = TABLE["attention.paged"].inputs(spec, 1)
    batch = inputs["batch"]
    for columns, decodes in ((1, 0), (3, 1), (16, 2), (33, 0), (48, 1), (256, 3)):
        for seqs in (1, 5, 100):
            table = torch.zeros(seqs, columns, dtype=torch.int32)
            lengths = torch.ones(seqs, dtype=torch.int32)
            step = replace(
                batch, num_decode=decodes, max_q=7, max_kv=16 * columns, padded=False,
                page_table=(table,) * len(batch.page_table), row=lengths, seq_len=lengths,
            )  # fmt: skip
            built(inputs | {"batch": step})
    print(sorted(Counter(name for name, _ in wanted).items()))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
