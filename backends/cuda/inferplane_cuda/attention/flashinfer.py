"""attention.paged by FlashInfer (Ye et al., arXiv 2501.01005), package flashinfer.

One kernel serves decode, prefill and mixed steps. It wants the work cut up by the host before each
step, and the pages of all sequences in one list: both are the op's `plan`, once a step for all
layers that attend alike. Plans of recorded steps write to buffers that the recording reads.

Rows of padding belong to one more sequence that has no keys, so that every row is written and the
number of rows is always the bucket's. The list of pages is made on the device, for only there the
page tables are known.
"""

import shutil
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError
from inferplane.hw import Bound, BuildContext, Device, ForwardBatch, Reject, Support
from inferplane.hw.device import Event
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.probing import installed_version
from inferplane_cuda.attention.packages import major, missing, processors, untaken

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "flashinfer-python"
OLDEST = (0, 6)
NVCC = Path("/usr/local/cuda/bin/nvcc")
HEAD_DIMS = (64, 128, 256)
FLOAT_BYTES = 2**28
"""for the parts of split sequences"""
INT_BYTES = 2**20
"""for a plan, on the device once and on the host once a bucket"""


@dataclass(slots=True)
class FlashInfer:
    name: str = "cuda.flashinfer"
    _context: BuildContext | None = None
    _plans: "dict[AttentionSpec, Plans] | None" = None

    def supports(self, spec: AttentionSpec, device: Device) -> Support | Reject:
        return (
            missing("flashinfer", PACKAGE)
            or outdated(installed_version(PACKAGE))
            or no_compiler()
            or untaken(spec, device)
            or self._untaken(spec, device)
            or Support(priority=40, invariance="run", capture="plan", notes="FlashInfer")
        )

    def _untaken(self, spec: AttentionSpec, device: Device) -> Reject | None:
        if major(device) < 8:
            return Reject("hardware", f"made for sm_80 and later, not {device.info.arch}")
        if spec.determinism == "batch":
            return Reject("determinism", "its tiles depend on the queries of the whole batch")
        if spec.kv.dtype not in (spec.dtype, "float8_e4m3fn"):
            return Reject("dtype", f"pages in {spec.kv.dtype}, the model is in {spec.dtype}")
        if spec.sinks:
            return Reject("feature", "sinks")
        if spec.kv.head_dim not in HEAD_DIMS:
            return Reject("shape", f"head_dim {spec.kv.head_dim} is not one of {HEAD_DIMS}")
        return None

    def build(self, spec: AttentionSpec, ctx: BuildContext) -> Bound:
        """Layers that attend alike share a plan, which the first of them makes."""
        if self._context is not ctx or self._plans is None:
            self._context, self._plans = ctx, {}
        key = replace(spec, layer=0)
        first = key not in self._plans
        if first:
            known = next(iter(self._plans.values()), None)
            self._plans[key] = Plans(key, ctx.device, known.workspace if known else None)
        plans, handle = self._plans[key], ctx.kv(spec.layer)

        def run(q: "Tensor", batch: ForwardBatch, sinks: "Tensor | None" = None) -> "Tensor":
            pages = handle.layout.split(handle.data)
            return plans.run(q, pages, batch)

        return Bound(run=run, plan=plans.plan if first else None)


def outdated(version: str | None) -> Reject | None:
    """`version`: None of a checkout without metadata, which is taken as it is."""
    numbers = [int(part) for part in (version or "").split(".")[:2] if part.isdecimal()]
    if numbers and tuple(numbers) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        return Reject("library", f"{version} is older than {wanted}: pip install -U {PACKAGE}")
    return None


def no_compiler() -> Reject | None:
    """The package compiles its kernels when they are first used, if it does not bring them."""
    if shutil.which("nvcc") or NVCC.exists() or missing("flashinfer_jit_cache", "") is None:
        return None
    return Reject("library", "no nvcc to compile its kernels: pip install flashinfer-jit-cache")


@dataclass(frozen=True, slots=True)
class Workspace:
    """Device memory of all plans of an engine: steps follow each other, so they share it."""

    floats: "Tensor"  # u8[FLOAT_BYTES]
    ints: "Tensor"  # u8[INT_BYTES]


@dataclass(slots=True)
class Planned:
    """The package's object for steps of one shape, and its list of pages on the device."""

    wrapper: Any
    indices: "Tensor"  # i32[N + 1], the last place takes what is not a page of a sequence
    copied: Event | None = None
    """when the device has read the last plan from the host's buffer"""


class Plans:
    """The plans of the layers that attend alike."""

    def __init__(self, spec: AttentionSpec, device: Device, workspace: Workspace | None) -> None:
        """Compiles the kernel if needed. DeviceError if that fails."""
        import torch

        self._spec, self._device = spec, device
        self._torch_device = device.info.torch_device
        self._processors = processors(device)
        self.workspace = workspace or Workspace(
            torch.empty(FLOAT_BYTES, dtype=torch.uint8, device=self._torch_device),
            torch.empty(INT_BYTES, dtype=torch.uint8, device=self._torch_device),
        )
        self._recorded: dict[tuple[int, int], Planned] = {}
        try:
            self._exact = Planned(self._wrapper(), self._ints([0]))
            self._try()
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(
                f"flashinfer is installed but its kernel cannot be made ({error}): reinstall it, "
                "or take another --attention-backend"
            ) from error

    def _ints(self, values: list[int]) -> "Tensor":
        import torch

        return torch.tensor(values, dtype=torch.int32, device=self._torch_device)

    def _wrapper(self, **buffers: Any) -> Any:
        package = import_module("flashinfer")
        floats, ints = self.workspace.floats, self.workspace.ints
        made = package.BatchPrefillWithPagedKVCacheWrapper(
            floats, "NHD", use_cuda_graph=bool(buffers), backend="fa2", **buffers
        )
        made.reset_workspace_buffer(floats, ints)
        return made

    def _try(self) -> None:
        """A step of one token: whatever is set up at first use must not be recorded."""
        import torch

        spec, kv = self._spec, self._spec.kv
        self._cut(self._exact.wrapper, [0, 1], [1], self._ints([0]))
        shape = (1, kv.page_size, kv.num_kv_heads, kv.head_dim)
        pages = torch.zeros(shape, device=self._torch_device).to(getattr(torch, kv.dtype))
        q = torch.zeros(1, spec.num_heads, kv.head_dim, device=self._torch_device)
        self._exact.wrapper.run(q.to(getattr(torch, spec.dtype)), (pages, pages))

    def plan(self, batch: ForwardBatch) -> None:
        import torch

        if not batch.host_exact:
            raise DeviceError(
                "flashinfer plans with the lengths of the sequences, which are not known to the "
                "host in this step: take another --attention-backend"
            )
        tokens = batch.token_ids.shape[0]
        lengths = [*batch.host_seq_len, 0]  # of the padding's sequence, too
        first = [0, *accumulate(-(-length // self._spec.kv.page_size) for length in lengths)]
        planned = self._of(batch)
        known = 0  # pages that the package has to copy
        if planned is self._exact:
            known = first[-1]
            planned.indices = torch.empty(known + 1, dtype=torch.int32, device=self._torch_device)
        self._list(planned.indices, batch.page_table[self._spec.group], first[:-1])
        if planned.copied is not None:
            planned.copied.synchronize()
        starts = [*batch.host_q_start, tokens]
        self._cut(planned.wrapper, starts, lengths, planned.indices[:known], self._splits(batch))
        planned.copied = self._device.record()

    def _list(self, indices: "Tensor", table: "Tensor", first: list[int]) -> None:
        """indices[first[i] + c] = table[i, c] for the pages of sequence i: those before the
        first of the next."""
        import torch

        most = max(b - a for a, b in pairwise(first)) if len(first) > 1 else 0
        begin = self._ints(first)
        where = begin[:-1, None] + torch.arange(most, dtype=torch.int32, device=indices.device)
        where = torch.where(where < begin[1:, None], where, len(indices) - 1)  # [B, most]
        indices.scatter_(0, where.flatten().long(), table[:, :most].flatten())

    def _cut(
        self,
        wrapper: Any,
        starts: list[int],
        lengths: list[int],
        indices: "Tensor",
        splits: bool = True,
    ) -> None:
        """`starts`: of the queries of each sequence, and their end; `lengths`: of its keys."""
        import torch

        spec, kv, size = self._spec, self._spec.kv, self._spec.kv.page_size
        counts = [-(-length // size) for length in lengths]
        last = [n - (c - 1) * size if c else 0 for n, c in zip(lengths, counts, strict=True)]
        host = [
            torch.tensor(values, dtype=torch.int32)
            for values in (starts, [0, *accumulate(counts)], last)
        ]
        wrapper.plan(
            *(host[0], host[1], indices, host[2]),
            *(spec.num_heads, kv.num_kv_heads, kv.head_dim, size),
            causal=True,
            sm_scale=spec.scale,
            window_left=spec.window - 1,
            logits_soft_cap=spec.softcap,
            q_data_type=getattr(torch, spec.dtype),
            kv_data_type=getattr(torch, kv.dtype),
            disable_split_kv=not splits,
        )

    def _splits(self, batch: ForwardBatch) -> bool:
        """Whether the workspace holds the parts, should sequences be split. The package cuts
        queries times heads that share a key head into tiles; a recorded step has room for the
        tiles of any step of its shape."""
        spec, kv = self._spec, self._spec.kv
        shared = spec.num_heads // kv.num_kv_heads
        tile = 128 if kv.head_dim < 256 else 64
        programs = 2 * self._processors // kv.num_kv_heads
        if batch.padded:
            tokens, seqs = batch.token_ids.shape[0], batch.row.shape[0]
            tile = 16 if (tokens - seqs) * shared <= 16 else tile
            programs = max(programs, -(-tokens * shared // tile) + seqs)
        return 4 * spec.num_heads * programs * tile * (kv.head_dim + 1) < FLOAT_BYTES

    def run(self, q: "Tensor", pages: "tuple[Tensor, Tensor]", batch: ForwardBatch) -> "Tensor":
        import torch

        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self._of(batch).wrapper.run(q, pages, out=out)
        return out

    def _of(self, batch: ForwardBatch) -> Planned:
        """What serves a batch: steps that may be recorded have one for their shape."""
        import torch

        if not batch.padded:
            return self._exact
        seqs = batch.row.shape[0]
        key = (batch.token_ids.shape[0], seqs)
        if key not in self._recorded:
            room = seqs * batch.page_table[self._spec.group].shape[1]
            indices = torch.zeros(room + 1, dtype=torch.int32, device=self._torch_device)
            wrapper = self._wrapper(
                qo_indptr_buf=self._ints([0] * (seqs + 2)),
                paged_kv_indptr_buf=self._ints([0] * (seqs + 2)),
                paged_kv_indices_buf=indices,
                paged_kv_last_page_len_buf=self._ints([0] * (seqs + 1)),
            )
            self._recorded[key] = Planned(wrapper, indices)
        return self._recorded[key]
