"""PageAllocator against a model that writes down who holds which page."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferplane.errors import ConfigError
from inferplane.scheduling.pages import KVGroupPages, PageAllocator

NUM_PAGES = 7


class PageMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = PageAllocator(NUM_PAGES)
        self.holders: list[int] = []  # one entry for each reference of a request
        self.cached: list[int] = []

    def used(self) -> set[int]:
        return {*self.holders, *self.cached}

    @precondition(lambda self: len(self.used()) < NUM_PAGES - 1)
    @rule()
    def alloc(self) -> None:
        page = self.pool.alloc()
        assert 0 < page < NUM_PAGES
        assert page not in self.used()
        self.holders.append(page)

    @precondition(lambda self: self.used())
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.used())))
        self.pool.share(page)
        self.holders.append(page)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(page)

    @precondition(lambda self: set(self.holders) - set(self.cached))
    @rule(data=st.data())
    def cache(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(set(self.holders) - set(self.cached))))
        self.pool.cache(page)
        self.cached.append(page)

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def uncache(self, data: st.DataObject) -> None:
        page = self.cached.pop(data.draw(st.integers(0, len(self.cached) - 1)))
        self.pool.uncache(page)

    @invariant()
    def counts_agree(self) -> None:
        evictable = set(self.cached) - set(self.holders)
        assert self.pool.num_free == NUM_PAGES - 1 - len(self.used())
        assert self.pool.num_evictable == len(evictable)
        assert self.pool.num_available == self.pool.num_free + len(evictable)
        for page in range(NUM_PAGES):
            refs = self.holders.count(page) + self.cached.count(page)
            assert self.pool.refs(page) == refs
            assert self.pool.is_evictable(page) == (page in evictable)


PageMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPages = PageMachine.TestCase


@pytest.mark.parametrize(
    ("window", "length", "pages"),
    [(None, 1, 1), (None, 16, 1), (None, 17, 2), (1, 99, 1), (2, 99, 2), (17, 99, 2), (18, 99, 3)],
)
def test_pages_for(window: int | None, length: int, pages: int) -> None:
    group = KVGroupPages("g", 9, window)
    assert group.pages_for(length, 16) == pages
    touched = [
        last // 16 - (0 if window is None else max(0, last - window + 1)) // 16 + 1
        for last in range(length)
    ]
    assert pages == max(touched)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (KVGroupPages("full", 9, page_size=32), ["full", "32", "16", "--page-size"]),
        (KVGroupPages("full", 1), ["full", "0 pages", "--memory-fraction", "--max-model-len"]),
        (KVGroupPages("local", 9, 0), ["local", "window 0"]),
    ],
)
def test_a_wrong_group_is_refused(group: KVGroupPages, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        group.verify(16)
    assert all(word in str(error.value) for word in words)
