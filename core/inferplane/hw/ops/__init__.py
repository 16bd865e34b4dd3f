"""The op table of the contract."""

from inferplane.hw.op import Op
from inferplane.hw.ops import (
    activation,
    attention,
    derive,
    embedding,
    gated,
    kv,
    linear,
    norm,
    normed,
    rope,
    sampling,
)

MODULES = (
    attention,
    kv,
    norm,
    rope,
    activation,
    embedding,
    linear,
    gated,
    normed,
    sampling,
    derive,
)
TABLE: dict[str, Op] = {op.name: op for module in MODULES for op in module.OPS}
