"""PrefixCache against a model that keeps a flat table of prefixes and looks at all of it.

The machine's holders behave as requests do: they match, lock, share, extend page by page, exchange
their page where the cache has one, give window pages back, and release everything.
"""

from array import array
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferplane.scheduling.pages import KVGroupPages, PageAllocator
from inferplane.scheduling.prefix_cache import Node, PrefixCache

SIZE = 2
GROUPS = [KVGroupPages("full", 9), KVGroupPages("local", 8, 4)]
WINDOWS_ONLY = [KVGroupPages("near", 8, 2), KVGroupPages("far", 8, 5)]
Prefix = tuple[str, tuple[int, ...]]


@dataclass
class Holder:
    namespace: str
    tokens: list[int]
    node: Node
    pages: list[list[int]]
    back: int = 0


class CacheMachine(RuleBasedStateMachine):
    groups = GROUPS

    def __init__(self) -> None:
        super().__init__()
        self.pools = [PageAllocator(group.num_pages) for group in self.groups]
        self.cache = PrefixCache(SIZE, self.groups, self.pools)
        self.holders: list[Holder] = []
        self.table: dict[Prefix, list[int]] = {}  # what is cached, by whole prefix
        self.used: dict[Prefix, int] = {}  # when a holder last let go of it or what follows
        self.freed: dict[tuple[int, int], int] = {}  # (group, page): when it was given back
        self.now = 0

    # The model

    def held(self, group: int) -> set[int]:
        return {page for holder in self.holders for page in holder.pages[group] if page}

    def evictable(self, group: int) -> dict[int, Prefix]:
        held = self.held(group)
        return {
            pages[group]: prefix
            for prefix, pages in self.table.items()
            if pages[group] and pages[group] not in held
        }

    def longest(self, namespace: str, tokens: list[int]) -> int:
        for count in range(len(tokens) // SIZE, 0, -1):
            path = [
                self.table.get((namespace, tuple(tokens[: SIZE * k]))) for k in range(1, count + 1)
            ]
            if None not in path and all(
                path[column][g]  # type: ignore[index]
                for g, group in enumerate(self.groups)
                for column in range(count)
                if group.window is None or (column + 1) * SIZE > count * SIZE - group.window + 1
            ):
                return count
        return 0

    def locked(self, prefix: Prefix) -> bool:
        namespace, tokens = prefix
        return any(
            h.namespace == namespace and tuple(h.tokens[: len(tokens)]) == tokens
            for h in self.holders
        )

    def leaves(self) -> list[Prefix]:
        inner = {(namespace, tokens[:-SIZE]) for namespace, tokens in self.table}
        return [p for p in self.table if p not in inner and not self.locked(p)]

    def forget_empty(self) -> None:
        while gone := [p for p in self.leaves() if not any(self.table[p])]:
            for prefix in gone:
                del self.table[prefix]

    # What requests do

    @rule(
        namespace=st.sampled_from(["", "x"]),
        tokens=st.lists(st.integers(0, 1), max_size=9),
    )
    def start(self, namespace: str, tokens: list[int]) -> None:
        path = self.cache.match(namespace, array("i", tokens), len(tokens))
        count = len(path) - 1
        assert count == self.longest(namespace, tokens)
        self.cache.lock(path[-1])
        holder = Holder(namespace, tokens[: count * SIZE], path[-1], [])
        for g, group in enumerate(self.groups):
            window = count * SIZE if group.window is None else group.window - 1
            behind = max(0, count * SIZE - window) // SIZE
            pages = [0] * behind + [node.pages[g] for node in path[1 + behind :]]
            expected = [
                self.table[namespace, tuple(tokens[: SIZE * k])][g] for k in range(1, count + 1)
            ]
            assert pages[behind:] == expected[behind:] and all(pages[behind:])
            for page in pages[behind:]:
                self.pools[g].share(page)
            holder.pages.append(pages)
        self.holders.append(holder)

    @precondition(lambda self: self.holders and all(p.num_available for p in self.pools))
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=SIZE, max_size=SIZE))
    def extend(self, data: st.DataObject, tokens: list[int]) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        for g in range(len(self.groups)):
            if not self.pools[g].num_free:
                self.evict(g)
            holder.pages[g].append(self.pools[g].alloc())
        holder.tokens = holder.tokens + tokens
        prefix = (holder.namespace, tuple(holder.tokens))
        own = [pages[-1] for pages in holder.pages]
        known = self.table.setdefault(prefix, [0] * len(own))
        self.table[prefix] = [old or new for old, new in zip(known, own, strict=True)]
        child = self.cache.extend(holder.node, array("i", tokens).tobytes(), own)
        assert child.pages == self.table[prefix]
        for g, page in enumerate(child.pages):
            if page != own[g]:
                self.pools[g].share(page)
                holder.pages[g][-1] = page
                self.cache.give_back(g, own[g])
        self.cache.lock(child)
        self.cache.unlock(holder.node)
        holder.node = child

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def slide(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        for g, group in enumerate(self.groups):
            live = [c for c, page in enumerate(holder.pages[g]) if page]
            if group.window is not None and len(live) > 1:
                self.let_go(holder, g, live[0])

    def let_go(self, holder: Holder, group: int, column: int) -> None:
        page, holder.pages[group][column] = holder.pages[group][column], 0
        self.now += 1
        if page not in self.held(group):
            self.freed[group, page] = self.now
        self.cache.give_back(group, page)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        for g, pages in enumerate(holder.pages):
            for column, page in enumerate(pages):
                if page:
                    self.let_go(holder, g, column)
        self.holders.remove(holder)
        self.now += 1
        for count in range(SIZE, len(holder.tokens) + 1, SIZE):
            self.used[holder.namespace, tuple(holder.tokens[:count])] = self.now
        self.cache.unlock(holder.node)
        self.forget_empty()

    # What memory pressure does

    @rule(group=st.integers(0, 1))
    def evict(self, group: int) -> None:
        candidates = self.evictable(group)
        if self.groups[group].window is None:
            for prefix in sorted(self.leaves(), key=lambda p: self.used[p])[:1]:
                del self.table[prefix]
        else:
            for page in sorted(candidates, key=lambda p: self.freed[group, p])[:1]:
                self.table[candidates[page]][group] = 0
        assert self.cache.evict(group) == bool(candidates)
        self.forget_empty()

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        while gone := self.leaves():
            for prefix in gone:
                del self.table[prefix]
        for g, group in enumerate(self.groups):
            if group.window is not None:
                for page, prefix in self.evictable(g).items():
                    self.table[prefix][g] = 0
                    assert page
        self.forget_empty()

    @invariant()
    def the_tree_is_the_table(self) -> None:
        found: dict[Prefix, list[int]] = {}
        roots = 0
        for node in self.cache.nodes():
            if isinstance(node.key, str):
                roots += 1
                continue
            tokens, up = array("i"), node
            while isinstance(up.key, bytes):
                tokens = array("i", up.key) + tokens
                assert up.parent is not None
                up = up.parent
            assert isinstance(up.key, str)
            found[up.key, tuple(tokens)] = node.pages
        assert found == self.table
        assert self.cache.num_nodes == len(found) + roots
        for g, pool in enumerate(self.pools):
            assert pool.num_evictable == len(self.evictable(g))
            cached = {pages[g] for pages in self.table.values() if pages[g]}
            assert pool.num_free == pool.num_usable - len(cached | self.held(g))


class WindowCacheMachine(CacheMachine):
    groups = WINDOWS_ONLY


CacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
WindowCacheMachine.TestCase.settings = CacheMachine.TestCase.settings
TestCache = CacheMachine.TestCase
TestWindowCache = WindowCacheMachine.TestCase


def make_cache(pages: int = 99) -> tuple[PrefixCache, PageAllocator]:
    groups = [KVGroupPages("full", pages)]
    pools = [PageAllocator(pages)]
    return PrefixCache(SIZE, groups, pools), pools[0]


def visit(cache: PrefixCache, pool: PageAllocator, tokens: list[int], namespace: str = "") -> int:
    """A request computes `tokens` and ends. Returns how many pages it found."""
    path = cache.match(namespace, array("i", tokens), len(tokens))
    cache.lock(path[-1])
    pages = [node.pages[0] for node in path[1:]]
    for page in pages:
        pool.share(page)
    node = path[-1]
    for start in range(len(pages) * SIZE, len(tokens) - SIZE + 1, SIZE):
        if not pool.num_free:
            cache.evict(0)
        pages.append(pool.alloc())
        child = cache.extend(node, array("i", tokens[start : start + SIZE]).tobytes(), pages[-1:])
        cache.lock(child)
        cache.unlock(node)
        node = child
    for page in pages:
        cache.give_back(0, page)
    cache.unlock(node)
    return len(path) - 1


def test_a_prefix_is_found_within_its_namespace_only() -> None:
    cache, pool = make_cache()
    assert visit(cache, pool, [1, 2, 3, 4, 5, 6]) == 0
    assert visit(cache, pool, [1, 2, 3, 4, 9, 9]) == 2
    assert visit(cache, pool, [3, 4, 5, 6]) == 0
    assert visit(cache, pool, [1, 2, 3, 4], namespace="x") == 0
    assert visit(cache, pool, [1, 2, 3, 4], namespace="x") == 2


def test_the_least_recently_used_leaf_goes_first() -> None:
    cache, pool = make_cache(pages=5)
    visit(cache, pool, [1, 1, 2, 2])
    visit(cache, pool, [3, 3, 4, 4])
    visit(cache, pool, [1, 1, 2, 2])
    visit(cache, pool, [5, 5])
    assert visit(cache, pool, [1, 1, 2, 2]) == 2
    assert visit(cache, pool, [3, 3, 4, 4]) == 1


def test_namespaces_that_hold_nothing_leave_nothing() -> None:
    cache, pool = make_cache()
    for index in range(1000):
        visit(cache, pool, [1], namespace=f"tenant {index}")
    assert cache.num_nodes == 0


def test_the_heap_of_leaves_does_not_grow_with_use() -> None:
    cache, pool = make_cache()
    for _ in range(5000):
        visit(cache, pool, [1, 2, 3, 4])
    assert cache.num_nodes == 3
    assert len(cache._leaves) < 100


@pytest.mark.parametrize("window", range(1, 9))
@pytest.mark.parametrize("lost", range(5))
def test_a_match_needs_the_window_and_nothing_before_it(window: int, lost: int) -> None:
    groups = [KVGroupPages("full", 9), KVGroupPages("local", 9, window)]
    pools = [PageAllocator(9), PageAllocator(9)]
    cache = PrefixCache(SIZE, groups, pools)
    tokens = array("i", range(8))
    (root,) = cache.match("", tokens, 8)
    cache.lock(root)
    node, pages = root, []
    for start in range(0, 8, SIZE):
        pages.append([pools[0].alloc(), pools[1].alloc()])
        child = cache.extend(node, tokens[start : start + SIZE].tobytes(), pages[-1])
        cache.lock(child)
        cache.unlock(node)
        node = child
    for _, page in pages[:lost]:
        cache.give_back(1, page)
        assert cache.evict(1)
    needed = range(max(0, 8 - window + 1), 8)  # positions that the next token sees
    found = all(position // SIZE >= lost for position in needed)
    assert len(cache.match("", tokens, 8)) - 1 == (4 if found else 0)
