"""CUDA graphs as the contract's recordings, all in one memory pool."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw import ForwardBatch, Graph

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class CudaGraph:
    """A recorded call and the tensors that it writes."""

    graph: "torch.cuda.CUDAGraph"
    result: Any

    def replay(self, batch: ForwardBatch) -> Any:
        self.graph.replay()
        return self.result


class CudaGraphs:
    """Records on a stream of its own; kernels read every length from device memory, so nothing
    of a batch has to be refreshed."""

    def __init__(self, torch_device: str) -> None:
        import torch

        self._device = torch.device(torch_device)
        self._first: torch.cuda.CUDAGraph | None = None
        """holds the pool, also where the caller throws every graph away"""

    def capture(self, fn: Callable[[], Any], state: Any = None) -> Graph:
        import torch

        graph = torch.cuda.CUDAGraph(keep_graph=True)  # made executable by its first replay
        pool = self._first.pool() if self._first else None
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            # relaxed: libraries may load kernels while the stream is recorded
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="relaxed"):
                result = fn()
        if self._first is None:
            self._first = graph
        return CudaGraph(graph, result)

    def arena_bytes(self) -> int:
        import torch

        if self._first is None:
            return 0
        pool, segments = self._first.pool(), torch.cuda.memory_snapshot()
        return sum(s["total_size"] for s in segments if s["segment_pool_id"] == pool)
