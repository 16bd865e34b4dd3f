"""The C++ kernels as functions of torch tensors.

Callers pass tensors of the right type and shape: ops check what a model uses once, when it is
built. The innermost dimensions must be contiguous; strides of tokens, pages and heads are passed
on. Results are written into tensors that the caller allocates. Knows nothing of models or plans.
"""

import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from inferplane_xeon.memory import settle

if TYPE_CHECKING:
    from torch import Tensor

LINEAR_BLOCK = 48
"""columns of a block of packed weights; csrc/abi.h"""
GLU = {"": 0, "silu": 1, "gelu_tanh": 2}
TILES_NOTE = "matrix tiles (AMX)"


@cache
def packed_form() -> str:
    """What packed weights are laid out by: the code that packs, compiled and not. The layout is
    that of every instruction set."""
    from inferplane_xeon import _kernels

    sources = (Path(path) for path in (_kernels.__file__, __file__))
    digest = hashlib.sha256()
    for path in (*sources, Path(__file__).with_name("quantized.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def library() -> ModuleType:
    """The compiled module, using as many threads as torch does.

    Raises ImportError if it was not built or the processor is too old. Its `set_isa` chooses
    another instruction set than the best one.
    """
    import torch  # puts its OpenMP runtime, whose threads the kernels use, into the global scope

    from inferplane_xeon import _kernels

    _kernels.set_threads(torch.get_num_threads())
    module: ModuleType = _kernels
    return module


def attention(
    q: "Tensor",
    cache: "tuple[Tensor, Tensor]",
    page_table: "Tensor",
    seq_len: "Tensor",
    q_start: "Tensor",
    out: "Tensor",
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: "Tensor | None" = None,
) -> "Tensor":
    """q, out [T, Hq, D]; cache: keys and values [pages, page_size, Hkv, row] of equal strides, of
    q's type or int8, whose rows are D codes and a float32 scale."""
    k, v = cache
    tokens, heads, dim = q.shape  # [T, Hq, D]
    library().attention(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        page_table.data_ptr(),
        seq_len.data_ptr(),
        q_start.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        tokens,
        seq_len.shape[0],
        q.stride(0),
        page_table.stride(0),
        *k.stride()[:3],
        heads,
        k.shape[2],
        dim,
        k.shape[1],
        window,
        scale,
        softcap,
        q.element_size() == 4,
        k.element_size() == 1,
    )
    return out


def kv_write(k: "Tensor", v: "Tensor", cache: "tuple[Tensor, Tensor]", slot: "Tensor") -> None:
    """k, v [T, Hkv, D] -> cache at slot[t] = page * page_size + offset."""
    keys, values = cache
    library().kv_write(
        k.data_ptr(),
        v.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        slot.data_ptr(),
        k.shape[0],
        k.stride(0),
        v.stride(0),
        *keys.stride()[:3],
        k.shape[1],
        k.shape[2],
        keys.shape[1],
        k.element_size() == 4,
        keys.element_size() == 1,
    )


def rope(
    q: "Tensor",
    k: "Tensor",
    cos_sin: "Tensor",
    position: "Tensor",
    q_out: "Tensor",
    k_out: "Tensor | None",
    *,
    interleaved: bool = False,
    norms: "tuple[Tensor, Tensor] | None" = None,
    eps: float = 0.0,
    weight_offset: float = 0.0,
    cast_before_weight: bool = True,
    write: "tuple[Tensor, tuple[Tensor, Tensor], Tensor] | None" = None,
) -> None:
    """Rotate q and k, after `norms` (q and k weights) if any, and with `write` = (v, cache, slot)
    store the rotated keys and the values. q_out may be q, k_out may be k or None (not stored)."""
    tokens, heads, dim = q.shape
    v, cache, slot = write if write else (None, None, None)
    keys, values = cache if cache else (None, None)
    library().rope(
        q.data_ptr(),
        k.data_ptr(),
        0 if v is None else v.data_ptr(),
        q_out.data_ptr(),
        0 if k_out is None else k_out.data_ptr(),
        0 if keys is None else keys.data_ptr(),
        0 if values is None else values.data_ptr(),
        cos_sin.data_ptr(),
        position.data_ptr(),
        0 if slot is None else slot.data_ptr(),
        norms[0].data_ptr() if norms else 0,
        norms[1].data_ptr() if norms else 0,
        tokens,
        q.stride(0),
        k.stride(0),
        0 if v is None else v.stride(0),
        q_out.stride(0),
        0 if k_out is None else k_out.stride(0),
        *((0, 0, 0) if keys is None else keys.stride()[:3]),
        heads,
        k.shape[1],
        dim,
        cos_sin.shape[1],
        1 if keys is None else keys.shape[1],
        interleaved,
        eps,
        weight_offset,
        cast_before_weight,
        q.element_size() == 4,
        keys is not None and keys.element_size() == 1,
    )


def rms_norm(
    x: "Tensor",
    weight: "Tensor",
    out: "Tensor",
    *,
    eps: float,
    weight_offset: float = 0.0,
    cast_before_weight: bool = True,
    residual: "Tensor | None" = None,
    residual_out: "Tensor | None" = None,
) -> "Tensor":
    """x [T, d] -> out [T, d]. With `residual`, residual_out = x + residual is normalized."""
    library().norm(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        0 if residual_out is None else residual_out.data_ptr(),
        x.shape[0],
        x.shape[1],
        x.stride(0),
        eps,
        weight_offset,
        cast_before_weight,
        x.element_size() == 4,
    )
    return out


def glu(x: "Tensor", out: "Tensor", *, gelu: bool = False) -> "Tensor":
    """x [T, 2F] -> act(x[:, :F]) * x[:, F:], with silu or gelu (tanh form)."""
    tokens, width = out.shape
    library().glu(
        x.data_ptr(), out.data_ptr(), tokens, width, x.stride(0), gelu, x.element_size() == 4
    )
    return out


def pack_linear(weight: "Tensor") -> "Tensor":
    """W [N, K], float32 or bfloat16, in the kernel's order: [N/48, K (even), 48] flat."""
    import torch

    outputs, inputs = weight.shape
    f32 = weight.element_size() == 4
    depth = inputs if f32 else (inputs + 1) // 2 * 2
    blocks = (outputs + LINEAR_BLOCK - 1) // LINEAR_BLOCK
    packed = settle(torch.empty(blocks * depth * LINEAR_BLOCK, dtype=weight.dtype))
    library().pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs, weight.stride(0), f32)
    return packed


def in_turns(rows: "Tensor") -> "Tensor":
    """Rows of gates, then as many of ups, as blocks of both in turns: what a gated product packs.
    The last blocks are filled up with zeros."""
    import torch
    from torch.nn.functional import pad

    half = rows.shape[0] // 2
    spare = (0, 0) * (rows.ndim - 1) + (0, -half % LINEAR_BLOCK)
    pair = [pad(part, spare).unflatten(0, (-1, LINEAR_BLOCK)) for part in rows.split(half)]
    return torch.stack(pair, 1).flatten(0, 2)


def linear(
    x: "Tensor",
    packed: "Tensor",
    out: "Tensor",
    *,
    bias: "Tensor | None" = None,
    softcap: float = 0.0,
    glu: str = "",
) -> "Tensor":
    """x [M, K] times the packed weights, plus bias -> out [M, N] of x's type or float32. With `glu`
    the weights are `in_turns`, and out is act(gate) * up."""
    rows, outputs = out.shape
    library().linear(
        x.data_ptr(),
        packed.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows,
        x.shape[1],
        outputs,
        x.stride(0),
        out.element_size() == 4,
        softcap,
        x.element_size() == 4,
        GLU[glu],
    )
    return out


def embedding(ids: "Tensor", weight: "Tensor", out: "Tensor", *, scale: float = 1.0) -> "Tensor":
    """Rows ids [T] of weight [V, d], times `scale`, which has weight's precision -> out [T, d]."""
    tokens, width = out.shape
    library().embedding(
        ids.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        tokens,
        width,
        weight.stride(0),
        scale,
        weight.element_size() == 4,
    )
    return out


def draw(
    logits: "Tensor",
    rows: "tuple[Tensor, ...]",
    tokens: "Tensor",
    *,
    bitmask: "Tensor | None" = None,
    greedy: bool = False,
    unfiltered: bool = False,
) -> "Tensor":
    """logits f32[N, V] -> tokens i32[N]; `rows`: temperature, top_k, top_p, min_p, seed,
    sample_index and position, and `bitmask`, as `sampling.draw` takes them, each contiguous."""
    library().draw(
        logits.data_ptr(),
        *(values.data_ptr() for values in rows),
        tokens.data_ptr(),
        *logits.shape,
        greedy,
        unfiltered,
        0 if bitmask is None else bitmask.data_ptr(),
    )
    return tokens


def logprobs(
    logits: "Tensor", ids: "Tensor", results: "tuple[Tensor, Tensor, Tensor, Tensor]"
) -> None:
    """logits f32[N, V], ids i32[N] -> logprob f32[N] and rank i32[N] of ids, and the most likely
    ids i32[N, top] with their logprobs f32[N, top]."""
    library().logprobs(
        logits.data_ptr(),
        ids.data_ptr(),
        *(result.data_ptr() for result in results),
        *logits.shape,
        results[2].shape[1],
    )


def restrict(logits: "Tensor", inputs: "tuple[Tensor | None, ...]", out: "Tensor") -> "Tensor":
    """logits f32[N, V] -> out; `inputs`: counts, in_prompt, repetition, frequency, presence, bias,
    banned and bitmask, as `sampling.filter` takes them, each contiguous."""
    banned = inputs[6]
    library().filter(
        logits.data_ptr(),
        *(0 if values is None else values.data_ptr() for values in inputs),
        out.data_ptr(),
        *out.shape,
        0 if banned is None else banned.shape[1],
    )
    return out
