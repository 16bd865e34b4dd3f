"""Cases for rowwise.py: what is measured and on which values, without how."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from inferplane.hw.batch import FROM_DEVICE
from inferplane.hw.kv import KVSpec
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.derive import DeriveSpec
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.kv import RopeWriteSpec
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.normed import NormLinearSpec, NormMLPSpec
from inferplane.hw.ops.rope import RopeSpec
from inferplane.hw.quantization import QuantizedWeight, quantize
from inferplane.runner.schemes import scheme_named
from models import SHAPES, WIDTHS

KINDS = ("dense", "fp8", "int4")
L2 = 60 * 10**6
"""bytes that calls walk through at least; the H200's L2 holds 50 MB"""
MOST = 1024
"""calls of a recording"""
LONGEST = 32768
"""positions of the table of cosines and sines"""
PAGE = 16
SPARE = 128
"""pages of a row of the table beyond its context: each call of batch.derive counts a token more"""
WRITTEN = frozenset("x residual".split())
"""arguments of composites that come from the op before"""


@dataclass(frozen=True)
class Case:
    """`op`: of the contract, or one of QUANTIZING. `cold`: no call finds what it reads or writes
    where another one left it. `context`: tokens of each sequence, where that matters."""

    name: str
    op: str
    spec: Any
    rows: int
    dtype: str
    cold: bool = False
    context: int = LONGEST
    kind: str = "dense"

    @cached_property
    def products(self) -> list[LinearSpec]:
        if self.op == "norm_linear":
            return [self.spec.linear]
        return [self.spec.gated.linear, self.spec.down] if self.op == "norm_mlp" else []

    @property
    def item(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def weights(self) -> int:
        """Bytes of those of products"""
        width = WIDTHS.get(self.kind, self.item)
        return int(sum(p.in_features * p.out_features * width for p in self.products))

    @property
    def columns(self) -> int:
        """Pages of a sequence"""
        return -(-self.context // PAGE)

    @property
    def nbytes(self) -> int:
        """What must be read and written; of a composite without what its parts leave for each
        other."""
        spec, rows, item = self.spec, self.rows, self.item
        match self.op:
            case "norm.rms":
                return item * spec.dim * (2 * rows + 1)
            case "norm.add_rms":
                return item * spec.dim * (4 * rows + 1)
            case "norm.add_rms/fp8":  # a byte of the result and the row's scale
                return item * spec.norm.dim * (3 * rows + 1) + rows * (spec.norm.dim + 4)
            case "qk_norm_rope_kvwrite":  # cos and sin are in float32; position and slot
                heads = 2 * spec.num_heads + 4 * spec.kv.num_kv_heads
                norms = 2 * item * spec.kv.head_dim if spec.norm else 0
                return norms + rows * (
                    item * heads * spec.kv.head_dim + 4 * spec.rope.rotary_dim + 8
                )
            case "activation.glu":
                return 3 * item * rows * int(spec.size)
            case "activation.glu/fp8":
                return rows * ((2 * item + 1) * int(spec.gated.size) + 4)
            case "embedding":
                return rows * (2 * item * int(spec.dim) + 4)
            case "batch.derive":  # a row of the table is copied; 8 words read, 5 written
                return 4 * rows * (2 * self.columns + 13)
            case _:
                values = 3 * int(spec.norm.dim) + self.products[-1].out_features
                return self.weights + item * (rows * values + int(spec.norm.dim))

    @property
    def operations(self) -> int:
        return 2 * self.rows * sum(p.in_features * p.out_features for p in self.products)

    @property
    def copies(self) -> int:
        """As many as others must be walked through before one comes again, and itself."""
        walked = self.nbytes if self.cold else self.weights
        return min(MOST, 2 + L2 // walked) if walked else 1

    @property
    def pages(self) -> int:
        """For all copies; page 0 is not written to."""
        return 1 + -(-self.copies * self.rows // PAGE)


def head_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """(heads, heads of keys, head_dim)"""
    heads = int(config["num_attention_heads"])
    dim = config.get("head_dim") or config["hidden_size"] // heads
    return heads, int(config["num_key_value_heads"]), int(dim)


def layer(config: dict[str, Any], kind: str, dtype: str) -> tuple[NormLinearSpec, NormMLPSpec]:
    """The composites of a layer in one format of weights."""
    dim, size = int(config["hidden_size"]), int(config["intermediate_size"])
    heads, kv_heads, head = head_shape(config)
    inner, outer = (None if kind == "dense" else scheme_named(kind, k) for k in (size, dim))
    norm = RMSNormSpec(dim=dim, dtype=dtype, epsilon=config["rms_norm_eps"])
    wide = (heads + 2 * kv_heads) * head
    qkv = LinearSpec(in_features=dim, out_features=wide, dtype=dtype, scheme=outer)
    gated = GatedLinearSpec(in_features=dim, size=size, dtype=dtype, scheme=outer)
    down = LinearSpec(in_features=size, out_features=dim, dtype=dtype, scheme=inner)
    return NormLinearSpec(norm=norm, linear=qkv), NormMLPSpec(norm=norm, gated=gated, down=down)


def rowwise(config: dict[str, Any], dtype: str) -> Iterator[tuple[str, Any]]:
    """(op, spec) of what has no weights but those of norms."""
    dim, epsilon = int(config["hidden_size"]), float(config["rms_norm_eps"])
    heads, kv_heads, head = head_shape(config)
    norm = RMSNormSpec(dim=dim, dtype=dtype, epsilon=epsilon)
    rope = RopeSpec(
        head_dim=head,
        rotary_dim=head,
        max_position=LONGEST,
        theta=config["rope_theta"],
        dtype=dtype,
    )
    kv = KVSpec(num_kv_heads=kv_heads, head_dim=head, dtype=dtype, page_size=PAGE)
    each = RMSNormSpec(dim=head, dtype=dtype, epsilon=epsilon)
    head_norm = each if config["model_type"] == "qwen3" else None
    linear, mlp = layer(config, "fp8", dtype)
    yield "norm.rms", norm
    yield "norm.add_rms", norm
    yield "norm.add_rms/fp8", linear
    yield (
        "qk_norm_rope_kvwrite",
        RopeWriteSpec(layer=0, num_heads=heads, kv=kv, rope=rope, norm=head_norm),
    )
    yield "activation.glu", GluSpec(size=config["intermediate_size"], dtype=dtype)
    yield "activation.glu/fp8", mlp
    yield "embedding", EmbeddingSpec(vocab=config["vocab_size"], dim=dim, dtype=dtype)
    yield "batch.derive", DeriveSpec(page_size=PAGE)


def rowwise_cases(
    models: Iterable[str], rows: Iterable[int], dtype: str, contexts: Sequence[int]
) -> Iterator[Case]:
    """Of each count all ops, should the time not do for all counts. `contexts`: of the ops that
    read a table with a row for each position or page."""
    for count in rows:
        for model in models:
            for op, spec in rowwise(SHAPES[model], dtype):
                tables = op in ("qk_norm_rope_kvwrite", "batch.derive")
                for context in contexts if tables else (LONGEST,):
                    tail = f"/{context // 1024}k" if tables else ""
                    name = f"{model}/{op}/m{count}{tail}"
                    cold = Case(f"{name}/cold", op, spec, count, dtype, True, context)
                    if op != "embedding":  # whose rows nobody has written
                        yield Case(f"{name}/warm", op, spec, count, dtype, False, context)
                    if op == "embedding" or cold.copies * cold.nbytes > L2:
                        yield cold


def composite_cases(
    models: Iterable[str], rows: Iterable[int], dtype: str, kinds: Sequence[str]
) -> Iterator[Case]:
    for count in rows:
        for model in models:
            for kind in kinds:
                for op, spec in zip(
                    ("norm_linear", "norm_mlp"), layer(SHAPES[model], kind, dtype), strict=True
                ):
                    yield Case(f"{model}/{op}/{kind}/m{count}", op, spec, count, dtype, kind=kind)


def stored(case: Case, where: str) -> list[Any]:
    """Weights that are made once: those of products, and the embedding's table."""
    kind = getattr(torch, case.dtype)
    if case.op == "embedding":
        return [torch.randn(case.spec.vocab, case.spec.dim, dtype=kind, device=where)]
    made: list[Any] = []
    for part in case.products:
        dense = torch.randn(part.out_features, part.in_features, device=where)
        dense /= part.in_features**0.5
        made.append(quantize(dense, part.scheme) if part.scheme else dense.to(kind))
    return made


def copied(weight: Any) -> Any:
    return weight.moved(torch.clone) if isinstance(weight, QuantizedWeight) else weight.clone()


def arguments(case: Case, copy: int, weights: list[Any], where: str) -> dict[str, Any]:
    """What `run` takes, in its order; `packed` is what `prepack` takes."""
    spec, rows, kind = case.spec, case.rows, getattr(torch, case.dtype)

    def rand(width: int) -> torch.Tensor:
        return torch.randn(rows, width, device=where).to(kind)

    def ones(width: int) -> torch.Tensor:
        return torch.ones(width, dtype=kind, device=where)

    match case.op:
        case "embedding":
            ids = torch.randint(spec.vocab, (rows,), dtype=torch.int32, device=where)
            return {"ids": ids, "weight": weights[0]}
        case "activation.glu":
            return {"x": rand(2 * spec.size)}
        case "activation.glu/fp8":
            return {"x": rand(2 * spec.gated.size)}
        case "norm.rms":
            return {"x": rand(spec.dim), "weight": ones(spec.dim)}
        case "norm.add_rms" | "norm.add_rms/fp8":
            dim = spec.dim if case.op == "norm.add_rms" else spec.norm.dim
            return {"x": rand(dim), "residual": rand(dim), "weight": ones(dim)}
        case "qk_norm_rope_kvwrite":
            return _written(case, copy, rand, ones, where)
        case "batch.derive":
            return _tables(case, where)
    width = case.products[0].in_features
    packed = [copied(weight) for weight in weights]
    return {"x": rand(width), "packed": packed, "residual": rand(width), "norm": ones(width)}


def _written(case: Case, copy: int, rand: Any, ones: Any, where: str) -> dict[str, Any]:
    """Heads of one product, positions all over the context, a slot in a page of its own for each
    row where there are as many pages: as of sequences that decode."""
    spec, rows = case.spec, case.rows
    heads, dim = spec.kv.num_kv_heads, spec.kv.head_dim
    qkv = rand((spec.num_heads + 2 * heads) * dim).view(rows, -1, dim)
    q, k, v = qkv.split((spec.num_heads, heads, heads), dim=1)
    number = torch.arange(rows, dtype=torch.int32, device=where) + copy * rows
    pages = case.pages - 1
    slot = (1 + number % pages) * PAGE + number // pages
    position = torch.randint(case.context, (rows,), dtype=torch.int32, device=where)
    given = {"q": q, "k": k, "v": v, "position": position, "slot": slot}
    return given | ({"q_weight": ones(dim), "k_weight": ones(dim)} if spec.norm else {})


def _tables(case: Case, where: str) -> dict[str, Any]:
    """A decode step of sequences that are as long as the context; row 0 is for padding."""
    rows = case.rows

    def ints(*values: Any) -> torch.Tensor:
        return torch.arange(*values, dtype=torch.int32, device=where)

    def full(count: int, value: int) -> torch.Tensor:
        return torch.full((count,), value, dtype=torch.int32, device=where)

    shape = (rows + 1, case.columns + SPARE)
    pages = torch.randint(1, 9999, shape, dtype=torch.int32, device=where)
    return {
        "row": ints(1, rows + 1),
        "q_start": ints(rows + 1),
        "token": full(rows, FROM_DEVICE),
        "token_row": ints(1, rows + 1),
        "offset": full(rows, 0),
        "num_computed": full(rows + 1, case.context - 1),
        "last_token": ints(rows + 1),
        "pages": (pages,),
        "columns": case.columns,
    }
