"""What a case can reach on the machine at most, and the lines that are reported. Pure arithmetic.

A limit is the larger of two times: the bytes that must be read over the bandwidth, and the
operations over the peak, both measured in the same run. Weights count in the bytes that the
precision class needs at least (bf16 2, 8-bit 1, 4-bit with a 16 bit scale for 32 values 9/16), the
output head among them; keys and values in bf16.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTHS = {"bf16": 2.0, "8-bit": 1.0, "4-bit": 0.5 + 2 / 32}
"""precision class -> bytes of a weight"""
KV_WIDTH = 2


@dataclass(frozen=True)
class Ceiling:
    """bytes a second, and operations a second on bf16 and on int8 values"""

    read: float
    bf16: float
    int8: float

    def peak(self, precision: str) -> float:
        """4-bit weights are multiplied as int8."""
        return self.bf16 if precision == "bf16" else self.int8


@dataclass(frozen=True)
class Shape:
    """`layers`: weights of all products of the layers, `head`: of the logits; `kv`: keys and values
    of a token; `attention`: operations of a query on one key and its value."""

    layers: int
    head: int
    kv: int
    attention: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """From a config.json of the llama or qwen3 kind."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        dim = config.get("head_dim") or hidden // heads
        q, kv = heads * dim, config["num_key_value_heads"] * dim
        layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * config["intermediate_size"]
        depth = config["num_hidden_layers"]
        return cls(
            layers=depth * layer,
            head=config["vocab_size"] * hidden,
            kv=depth * 2 * kv,
            attention=depth * 4 * q,
        )


def decode_limit(
    shape: Shape, ceiling: Ceiling, precision: str, batch: int, context: float
) -> float:
    """Tokens a second of `batch` sequences with `context` cached tokens each."""
    read = WIDTHS[precision] * (shape.layers + shape.head) + KV_WIDTH * shape.kv * batch * context
    products = 2 * batch * (shape.layers + shape.head) / ceiling.peak(precision)
    attention = batch * context * shape.attention / ceiling.bf16
    return batch / max(read / ceiling.read, products + attention)


def prefill_limit(shape: Shape, ceiling: Ceiling, precision: str, length: int) -> float:
    """Prompt tokens a second of one prompt; the head computes its last token alone."""
    read = WIDTHS[precision] * (shape.layers + shape.head)
    products = 2 * (length * shape.layers + shape.head) / ceiling.peak(precision)
    attention = length * (length + 1) / 2 * shape.attention / ceiling.bf16
    return length / max(read / ceiling.read, products + attention)


def limit_of(
    case: str, shape: Shape, ceiling: Ceiling, precision: str, prompt: int, output: int
) -> float | None:
    """Of a case such as decode/8 or prefill/512; None where no limit is computed."""
    kind, _, number = case.partition("/")
    if kind == "decode":
        context = prompt + output / 2
        return decode_limit(shape, ceiling, precision, int(number), context)
    if kind == "prefill":
        return prefill_limit(shape, ceiling, precision, int(number))
    return None


UNITS = {"decode": "tok/s", "prefill": "tok/s", "http": "tok/s", "start": "s", "memory": "MB"}
Key = tuple[str, str, str, str]
"""(precision, case, engine, variant)"""


def better(case: str, a: float, b: float) -> float:
    """How many times as good a is as b."""
    return a / b if UNITS[case.partition("/")[0]].endswith("/s") else b / a


@dataclass(frozen=True)
class Row:
    """Median of the rounds. `ratio`: how many times as good our best variant is; for our own,
    against the best peer. The best are those of the same precision and case."""

    key: Key
    value: float
    values: list[float]
    ratio: float | None


def rows(found: Mapping[Key, Sequence[float]], ours: str) -> list[Row]:
    """All results of a run as rows, those of a case together, the best first."""
    medians = {key: statistics.median(values) for key, values in found.items()}
    made = []
    for key, value in medians.items():
        precision, case, engine, _ = key
        same = {k: v for k, v in medians.items() if k[:2] == (precision, case)}
        mine = [v for k, v in same.items() if k[2] == ours]
        theirs = [v for k, v in same.items() if k[2] != ours]
        ratio = None
        if engine == ours and theirs:
            ratio = min(better(case, value, other) for other in theirs)
        elif engine != ours and mine:
            ratio = max(better(case, own, value) for own in mine)
        made.append(Row(key, value, list(found[key]), ratio))
    first = {key[:2]: index for index, key in reversed(list(enumerate(medians)))}
    return sorted(made, key=lambda r: (first[r.key[:2]], -better(r.key[1], r.value, 1.0)))


GOALS = {
    ("bf16", "decode/1"): 1.35,
    ("bf16", "decode/8"): 1.8,
    ("bf16", "decode/16"): 1.8,
    ("8-bit", "decode/1"): 2.0,
    ("8-bit", "decode/8"): 2.5,
    ("8-bit", "decode/16"): 2.5,
    ("4-bit", "decode/1"): 2.6,
    ("4-bit", "decode/8"): 3.8,
    ("4-bit", "decode/16"): 2.8,
    ("bf16", "prefill/512"): 1.2,
    ("8-bit", "prefill/512"): 1.6,
    ("bf16", "http/32"): 2.0,
}
"""wanted ratio to the best peer"""
NEAR_LIMIT = {"decode": 0.92, "prefill": 0.82}
"""this part of the limit will do, too"""
MOST = {"start": 4.0, "memory": 900.0}
"""wanted values, whatever peers reach"""


def met(row: Row, limit: float | None) -> bool | None:
    """Whether a row of ours meets the goal of its case; None without one."""
    precision, case, _, _ = row.key
    kind = case.partition("/")[0]
    if kind in MOST:
        return row.value <= MOST[kind]
    goal = GOALS.get((precision, case))
    if goal is None or (row.ratio is None and limit is None):
        return None
    near = limit is not None and row.value >= NEAR_LIMIT.get(kind, 1.0) * limit
    return near or (row.ratio is not None and row.ratio >= goal)
