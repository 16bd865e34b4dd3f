"""Logprobs of tokens that a request names, for the few requests that name some."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inferplane.hw.device import Device
from inferplane.hw.op import Determinism
from inferplane.hw.ops.rowwise import rowwise

if TYPE_CHECKING:
    from torch import Tensor


def wanted_logprobs(
    device: Device, logits: "Tensor", ids: Sequence[int], determinism: Determinism
) -> "Tensor":
    """f32[N, V] -> f32[N, len(ids)], natural logarithms. In batch mode a row has the same bits
    however many come with it."""
    if not ids:
        return logits.new_empty(logits.shape[0], 0)
    import torch

    staged = device.host_buffer(len(ids), "int32")
    staged.copy_(torch.tensor(ids, dtype=torch.int32))
    index = staged.to(logits.device, non_blocking=True)

    def score(rows: "Tensor") -> "Tensor":
        return rows.index_select(1, index) - rows.logsumexp(-1, keepdim=True)

    result: Tensor = (rowwise(score) if determinism == "batch" else score)(logits)
    return result
