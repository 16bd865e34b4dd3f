"""All layers share one table of cosines and sines, and it goes with the last of them."""

import gc
from dataclasses import replace

from inferplane.hw.ops import rope
from inferplane.hw.ops.rope import RopeSpec, cos_sin_table

SPEC = RopeSpec(head_dim=8, rotary_dim=8, max_position=16, theta=1e4, dtype="float32")


def test_equal_specs_share_a_table_while_somebody_holds_it() -> None:
    table = cos_sin_table(SPEC, "cpu")
    assert table.shape == (16, 8)
    assert cos_sin_table(replace(SPEC), "cpu") is table
    other = cos_sin_table(replace(SPEC, theta=1e6), "cpu")
    assert not other.equal(table)
    assert cos_sin_table(SPEC, "meta").is_meta
    del table
    gc.collect()
    assert (SPEC, "cpu") not in rope._tables
    assert (replace(SPEC, theta=1e6), "cpu") in rope._tables
