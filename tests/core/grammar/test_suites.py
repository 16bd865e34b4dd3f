"""A part of the schema suites; `python ci/suites/json_schema.py` runs all of them."""

import json

import pytest
from ci.suites.json_schema import ARCHIVES, DATA, RATCHET, Judge, cases, compare

from inferplane.checkpoint.source import ModelSource

PARTS = {"draft7": 6, "draft2020-12": 10, "maskbench": 66}
"""suite -> only every so many case"""


@pytest.mark.parametrize("suite", ARCHIVES)
def test_a_part_of_a_suite(suite: str, demo_model: ModelSource) -> None:
    if not DATA.is_dir():
        pytest.skip(f"there is no folder {DATA}")
    judge = Judge(demo_model.tokenizer(), "auto")
    right = refused = count = 0
    for number, case in enumerate(cases(suite, DATA)):
        if number % PARTS[suite]:
            continue
        found = judge.judge(case)
        assert not found["false_accepts"], case.name
        right, refused, count = right + found["right"], refused + found["refused"], count + 1
    known = json.loads(RATCHET.read_text())[suite]
    total = known["right"] + known["refused"] + known["wrong"]
    assert total == sum(1 for _ in cases(suite, DATA))
    assert right / count > known["right"] / total - 0.15


def test_the_ratchet_only_improves() -> None:
    ratchet = {"a": {"right": 5, "false_accepts": 0}}
    from collections import Counter

    assert compare("a", Counter(right=5), ratchet) == []
    assert compare("a", Counter(right=6, false_accepts=1), ratchet) != []
    assert compare("a", Counter(right=4), ratchet) != []
    assert compare("new", Counter(right=0), ratchet) == []
