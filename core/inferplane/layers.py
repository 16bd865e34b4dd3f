"""Building blocks of models: each takes its weights and binds its ops once, then is a few calls.

Letters: T tokens, N sampled rows, d hidden size, Hq query heads, Hkv key/value heads, D head
size, F feed-forward size, V vocabulary. Layers know neither devices nor kernels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from inferplane.hw.batch import ForwardBatch
from inferplane.hw.kv import KVSpec
from inferplane.hw.op import Bound, Determinism
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.kv import RopeWriteSpec
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.normed import NormLinearSpec, NormMLPSpec
from inferplane.hw.ops.rope import RopeSpec
from inferplane.hw.quantization import QuantizedWeight, Scheme, concatenate, join
from inferplane.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """What one layer keeps per token. Layers with equal values share a KV group."""

    num_kv_heads: int
    head_dim: int
    window: int = 0


class Builder(Protocol):
    """What a model is built with."""

    dtype: str
    determinism: Determinism
    max_model_len: int
    weights: Weights

    def bind(self, op: str, spec: Any) -> Bound: ...
    def bind_packed(
        self,
        op: str,
        spec: Any,
        weights: "Mapping[str, Sequence[int]]",
        read: "Callable[[], Sequence[Any]]",
    ) -> tuple[Bound, Any]:
        """An op with its weights in packed form. `read` gives what `prepack` takes; it is not
        called if they were packed at an earlier start. Of one checkpoint, `weights`, names and
        shapes, must tell all that `read` depends on besides the spec."""

    def take_dense(self, name: str, shape: Sequence[int]) -> "Tensor":
        """A weight that stays as it is; one that is stored quantized is made dense only once."""

    def scheme(
        self, op: str, spec: Any, names: Sequence[str], sizes: Sequence[int], width: int
    ) -> Scheme | None:
        """The scheme for the weights [size, width] of a product; None: dense."""

    def group_of(self, layer: int) -> tuple[int, KVSpec]:
        """Index of the layer's KV group, and the shape of its pages."""


class Model(Protocol):
    """One architecture: constructed as Model(config, build) with the Hugging Face config.json."""

    @staticmethod
    def caches(config: dict[str, Any]) -> list[LayerCache]:
        """What each layer keeps, in order; asked before the model is built."""

    def forward(self, batch: ForwardBatch) -> "Tensor":
        """Hidden states [T, d] after the last norm."""

    def logits(self, hidden: "Tensor", out: "Tensor | None" = None) -> "Tensor":
        """[N, d] -> f32[N, V], which is `out` if that is given"""


def take_matrix(
    build: Builder, names: Sequence[str], sizes: Sequence[int], width: int, scheme: Scheme | None
) -> "Tensor | QuantizedWeight":
    """Weights [size, width] stacked, dense or in a scheme."""
    shapes = [(name, (size, width)) for name, size in zip(names, sizes, strict=True)]
    if scheme is None:
        dense = [build.weights.take(name, shape) for name, shape in shapes]
        return dense[0] if len(dense) == 1 else join(dense)
    return concatenate([build.weights.take_quantized(*named, scheme) for named in shapes])


class Product:
    """The weights of a product, not yet packed; several with one input are merged into one."""

    def __init__(
        self,
        build: Builder,
        names: Sequence[str],
        in_features: int,
        sizes: Sequence[int],
        bias: bool = False,
    ) -> None:
        take = build.weights.take
        weights = [f"{name}.weight" for name in names]
        spec = LinearSpec(
            in_features=in_features,
            out_features=sum(sizes),
            dtype=build.dtype,
            bias=bias,
            determinism=build.determinism,
        )
        scheme = build.scheme("linear", spec, weights, sizes, in_features)
        shapes = {w: (size, in_features) for w, size in zip(weights, sizes, strict=True)}
        biases = {f"{n}.bias": (size,) for n, size in zip(names, sizes, strict=True) if bias}

        def weight() -> "Tensor | QuantizedWeight":
            return take_matrix(build, weights, sizes, in_features, scheme)

        def read() -> "tuple[Tensor | QuantizedWeight, Tensor | None]":
            made, added = weight(), [take(*named) for named in biases.items()]
            return made, join(added) if added else None

        self.spec = replace(spec, scheme=scheme and scheme.merged(sizes))
        self.stored = {**shapes, **biases}
        self.weight, self.read = weight, read


class Linear:
    """y = x @ W.T + b"""

    def __init__(
        self, build: Builder, name: str, in_features: int, out_features: int, bias: bool = False
    ) -> None:
        product = Product(build, [name], in_features, [out_features], bias)
        bound, self._packed = build.bind_packed(
            "linear", product.spec, product.stored, product.read
        )
        self._run = bound.run

    def __call__(self, x: "Tensor") -> "Tensor":
        out: Tensor = self._run(x, self._packed)
        return out


class NormWeight:
    """A norm over the last dimension that is a part of another layer."""

    def __init__(
        self,
        build: Builder,
        name: str,
        dim: int,
        epsilon: float,
        offset: float = 0.0,
        cast_first: bool = True,
    ) -> None:
        self.spec = RMSNormSpec(
            dim=dim,
            dtype=build.dtype,
            epsilon=epsilon,
            offset=offset,
            cast_first=cast_first,
            determinism=build.determinism,
        )
        self.weight = build.weights.take(f"{name}.weight", (dim,))


class RMSNorm:
    """A norm of its own, alone or after adding to the residual stream."""

    def __init__(self, build: Builder, norm: NormWeight) -> None:
        self._weight = norm.weight
        self._run = build.bind("norm.rms", norm.spec).run
        self._add_run = build.bind("norm.add_rms", norm.spec).run

    def __call__(self, x: "Tensor") -> "Tensor":
        out: Tensor = self._run(x, self._weight)
        return out

    def add(self, x: "Tensor", residual: "Tensor") -> "tuple[Tensor, Tensor]":
        """(norm(x + residual), x + residual)"""
        out: tuple[Tensor, Tensor] = self._add_run(x, residual, self._weight)
        return out


class NormLinear:
    """Several products of norm(x + residual), merged into one."""

    def __init__(
        self,
        build: Builder,
        norm: NormWeight,
        names: Sequence[str],
        out_features: Sequence[int],
        bias: bool = False,
    ) -> None:
        product = Product(build, names, norm.spec.dim, out_features, bias)
        spec = NormLinearSpec(norm=norm.spec, linear=product.spec, determinism=build.determinism)
        self._norm = norm.weight
        bound, self._packed = build.bind_packed("norm_linear", spec, product.stored, product.read)
        self._run = bound.run

    def __call__(self, x: "Tensor", residual: "Tensor | None") -> "tuple[Tensor, Tensor]":
        """(norm(x + residual) @ W.T + b, x + residual)"""
        out: tuple[Tensor, Tensor] = self._run(x, self._packed, residual, self._norm)
        return out


class Attention:
    """Optional head norms, rotary embedding, KV write, and attention over the paged cache."""

    def __init__(
        self,
        build: Builder,
        layer: int,
        num_heads: int,
        rope: RopeSpec,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        head_norms: tuple[NormWeight, NormWeight] | None = None,
    ) -> None:
        self.group, kv = build.group_of(layer)
        self._heads = (num_heads, kv.num_kv_heads, kv.num_kv_heads)
        self._dim = kv.head_dim
        self._weights = tuple(norm.weight for norm in head_norms or ())
        self._write = build.bind(
            "qk_norm_rope_kvwrite",
            RopeWriteSpec(
                layer=layer,
                num_heads=num_heads,
                kv=kv,
                rope=rope,
                norm=head_norms[0].spec if head_norms else None,
                determinism=build.determinism,
            ),
        ).run
        self._attend = build.bind(
            "attention.paged",
            AttentionSpec(
                layer=layer,
                group=self.group,
                num_heads=num_heads,
                kv=kv,
                dtype=build.dtype,
                scale=scale,
                window=window,
                softcap=softcap,
                determinism=build.determinism,
            ),
        ).run

    def __call__(self, qkv: "Tensor", batch: ForwardBatch) -> "Tensor":
        """qkv [T, (Hq + 2 Hkv) * D] -> [T, Hq * D]"""
        q, k, v = qkv.view(qkv.shape[0], -1, self._dim).split(self._heads, dim=1)  # [T, H, D]
        q = self._write(q, k, v, batch.position, batch.slot[self.group], *self._weights)
        out: Tensor = self._attend(q, batch)
        return out.flatten(1)


class NormMLP:
    """down(act(gate(h)) * up(h)) of h = norm(x + residual)"""

    def __init__(
        self, build: Builder, norm: NormWeight, name: str, hidden: int, activation: str = "silu"
    ) -> None:
        kind: Any = {"silu": "silu"}.get(activation, "gelu_tanh")
        dim = norm.spec.dim
        names = [f"{name}.{part}_proj" for part in ("gate", "up")]
        both = Product(build, names, dim, [hidden, hidden])
        down = Product(build, [f"{name}.down_proj"], hidden, [dim])
        spec = NormMLPSpec(
            norm=norm.spec,
            gated=GatedLinearSpec(
                in_features=dim,
                size=hidden,
                dtype=build.dtype,
                activation=kind,
                scheme=both.spec.scheme,
                determinism=build.determinism,
            ),
            down=down.spec,
            determinism=build.determinism,
        )
        self._norm = norm.weight
        bound, self._packed = build.bind_packed(
            "norm_mlp", spec, both.stored | down.stored, lambda: (both.weight(), down.weight())
        )
        self._run = bound.run

    def __call__(self, x: "Tensor", residual: "Tensor | None") -> "tuple[Tensor, Tensor]":
        """(the feed-forward of norm(x + residual), x + residual)"""
        out: tuple[Tensor, Tensor] = self._run(x, self._packed, residual, self._norm)
        return out


class Embedding:
    """Token ids to vectors. The table is dense even if the checkpoint's is not: lookup is no
    product, and reads few rows."""

    def __init__(self, build: Builder, name: str, vocab: int, dim: int, scale: float = 1.0) -> None:
        self.stored_name = f"{name}.weight"
        self.weight = build.take_dense(self.stored_name, (vocab, dim))
        spec = EmbeddingSpec(
            vocab=vocab, dim=dim, dtype=build.dtype, scale=scale, determinism=build.determinism
        )
        self._run = build.bind("embedding", spec).run

    def __call__(self, ids: "Tensor") -> "Tensor":
        out: Tensor = self._run(ids, self.weight)
        return out


class Head:
    """Hidden states to logits. `tied`: the embedding whose weight serves again."""

    def __init__(
        self,
        build: Builder,
        name: str,
        vocab: int,
        dim: int,
        tied: Embedding | None = None,
        softcap: float = 0.0,
    ) -> None:
        spec = LogitsSpec(
            dim=dim, vocab=vocab, dtype=build.dtype, softcap=softcap, determinism=build.determinism
        )
        stored = tied.stored_name if tied else f"{name}.weight"
        scheme = build.scheme("logits", spec, [stored], [vocab], dim)

        def read() -> "tuple[Tensor | QuantizedWeight]":
            if tied and scheme is None:
                return (tied.weight,)
            return (take_matrix(build, [stored], [vocab], dim, scheme),)

        bound, self._packed = build.bind_packed(
            "logits", replace(spec, scheme=scheme), {stored: (vocab, dim)}, read
        )
        self._bound = bound

    def __call__(self, hidden: "Tensor", out: "Tensor | None" = None) -> "Tensor":
        if out is None or self._bound.into is None:
            made: Tensor = self._bound.run(hidden, self._packed)
            return made if out is None else out.copy_(made)
        self._bound.into(hidden, self._packed, out)
        return out
