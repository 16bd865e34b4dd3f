"""CUDA graphs as the contract's recordings, all in one memory pool."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from inferplane.hw import ForwardBatch, Graph


@dataclass(slots=True)
class CudaGraph:
    """A recorded call and the tensors that it writes."""

    parts: list[Callable[[], None]]
    """graphs' replays, and the calls between them"""
    result: Any = None

    def replay(self, batch: ForwardBatch) -> Any:
        for part in self.parts:
            part()
        return self.result


@dataclass(slots=True)
class Piece:
    """What is being recorded."""

    parts: list[Callable[[], None]] = field(default_factory=list)
    recording: ExitStack = field(default_factory=ExitStack)


class CudaGraphs:
    """Records on a stream of its own; kernels read every length from device memory, so nothing
    of a batch has to be refreshed."""

    def __init__(self, torch_device: str) -> None:
        import torch

        self._device = torch.device(torch_device)
        self._first: Any = None
        """holds the pool, also where the caller throws every graph away"""
        self._piece = Piece()

    def capture(self, fn: Callable[[], Any], state: Any = None) -> Graph:
        import torch

        self._piece = piece = Piece()
        with torch.cuda.device(self._device), piece.recording:
            self._begin(piece)
            result = fn()
        return CudaGraph(piece.parts, result)

    def outside(self, call: Callable[[], None]) -> None:
        piece = self._piece
        piece.recording.close()
        call()
        piece.parts.append(call)
        self._begin(piece)

    def _begin(self, piece: Piece) -> None:
        import torch

        graph = torch.cuda.CUDAGraph(keep_graph=True)  # made executable by its first replay
        pool = self._first.pool() if self._first else None
        torch.cuda.synchronize()
        # rehearsals compile kernels in place of their launches, so pieces of them can be empty
        piece.recording.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "The CUDA Graph is empty", UserWarning)
        # relaxed: libraries may load kernels while the stream is recorded
        piece.recording.enter_context(
            torch.cuda.graph(graph, pool=pool, capture_error_mode="relaxed")
        )
        piece.parts.append(graph.replay)
        if self._first is None:
            self._first = graph

    def arena_bytes(self) -> int:
        import torch

        if self._first is None:
            return 0
        pool, segments = self._first.pool(), torch.cuda.memory_snapshot()
        return sum(s["total_size"] for s in segments if s["segment_pool_id"] == pool)
