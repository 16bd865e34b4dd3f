"""The op table of the contract."""

from inferplane.hw.op import Op
from inferplane.hw.ops import (
    activation,
    attention,
    embedding,
    gated,
    kv,
    linear,
    norm,
    rope,
    sampling,
)

TABLE: dict[str, Op] = {
    op.name: op
    for module in (attention, kv, norm, rope, activation, embedding, linear, gated, sampling)
    for op in module.OPS
}
