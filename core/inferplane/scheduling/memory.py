"""Which pages each running request has, and what goes to and comes from the prefix cache.

Knows nothing about steps, queues or tokens' meaning. All groups have the same columns: column c of
a request holds its tokens c * page_size and following, in one page of each group, or in none where
a window group has given it back. Changes of page tables are collected in `writes`, which the
scheduler puts into the plan; a plan never writes one place twice.
"""

from collections.abc import Iterable, Sequence

from inferplane.errors import ConfigError
from inferplane.hw.batch import PageWrite
from inferplane.messages import Submit
from inferplane.scheduling.pages import KVGroupPages, PageAllocator
from inferplane.scheduling.prefix_cache import PrefixCache
from inferplane.scheduling.request import Request, verify_size

RETRY_STEPS = 16
"""A request that does not fit looks for its prefix again after so many steps: the look-up costs
time in proportion to its length."""


class Memory:
    """The page pools, the prefix cache, and the requests' share in both."""

    def __init__(
        self, page_size: int, groups: Sequence[KVGroupPages], max_model_len: int, caching: bool
    ) -> None:
        if not groups:
            raise ConfigError("the model has 0 KV groups, at least 1 is needed")
        for group in groups:
            group.verify(page_size)
        self._page_size = page_size
        self._groups = list(groups)
        self._max_model_len = max_model_len
        self._peaks = [group.pages_for(max_model_len, page_size) for group in groups]
        self._caching = caching
        self.pools = [PageAllocator(group.num_pages) for group in groups]
        self.cache = PrefixCache(page_size, self._groups, self.pools)
        self.writes: list[PageWrite] = []

    def verify(self, submit: Submit) -> None:
        """RequestError for what can never fit."""
        verify_size(submit, self._max_model_len, self._page_size, self._groups)

    def wanted(self, requests: Iterable[Request], others: Sequence[int] = ()) -> list[int]:
        """Pages by group that running requests will want soon, and `others`."""
        wanted = [list(others) or [0] * len(self._groups)]
        wanted += [self._wanted(request) for request in requests]
        return [sum(column) for column in zip(*wanted, strict=True)]

    def attach(self, request: Request, row: int, reserve: list[int], step: int) -> bool:
        """Give a request its cached prefix and a row, if its known tokens fit beside `reserve`."""
        if request.need and step < request.retry_at and not self._fits(request.need, reserve):
            return False
        limit = request.match_limit if self._caching else 0
        path = self.cache.match(request.namespace, request.tokens, limit)
        self.cache.lock(path[-1])
        request.stored = len(path) - 1
        request.computed = request.capacity = request.stored * self._page_size
        request.pages, request.given_back = [], []
        held = []  # matched pages that could be evicted until now
        for g, group in enumerate(self._groups):
            window = request.computed if group.window is None else group.window - 1
            behind = max(0, request.computed - window) // self._page_size
            pages = [0] * behind + [node.pages[g] for node in path[behind + 1 :]]
            held.append(sum(map(self.pools[g].is_evictable, pages)))
            request.pages.append(pages)
            request.given_back.append(behind)
        need = [want + kept for want, kept in zip(self._wanted(request), held, strict=True)]
        if not self._fits(need, reserve):
            request.need, request.retry_at = need, step + RETRY_STEPS
            self.cache.unlock(path[-1])
            return False
        request.row, request.node, request.need = row, path[-1], None
        for g, pages in enumerate(request.pages):
            for column, page in enumerate(pages):
                self.writes.append(PageWrite(g, row, column, page))
                if page:
                    self.pools[g].share(page)
        return True

    def grow(self, request: Request, count: int) -> int:
        """Pages for up to `count` more tokens. Returns for how many, 0 if there is no page left."""
        if request.computed + count <= request.capacity:
            return count
        self._slide(request)
        self.store(request, request.computed)
        size = self._page_size
        spare = min([pool.num_available for pool in self.pools])
        count = min(count, request.capacity + spare * size - request.computed)
        for column in range(request.capacity // size, -(-(request.computed + count) // size)):
            for g, pool in enumerate(self.pools):
                if not pool.num_free:
                    self.cache.evict(g)
                page = pool.alloc()
                request.pages[g].append(page)
                self.writes.append(PageWrite(g, request.row, column, page))
            request.capacity += size
        return count

    def store(self, request: Request, settled: int) -> None:
        """Put the request's full pages of known tokens into the prefix cache. Where the cache has
        them already the request takes those and gives up its own; not yet if they are beyond
        `settled`, because the step being planned writes them."""
        size, node = self._page_size, request.node
        if not self._caching or node is None:
            return
        for column in range(request.stored, min(request.computed, len(request.tokens)) // size):
            end = (column + 1) * size
            key = request.tokens[end - size : end].tobytes()
            if end > settled and key in node.children:
                break
            child = self.cache.extend(node, key, [pages[column] for pages in request.pages])
            for g, (pages, kept) in enumerate(zip(request.pages, child.pages, strict=True)):
                own = pages[column]
                if own and own != kept:
                    self.pools[g].share(kept)
                    self.cache.give_back(g, own)
                    pages[column] = kept
                    if request.row:
                        self.writes.append(PageWrite(g, request.row, column, kept))
            self.cache.lock(child)
            self.cache.unlock(node)
            request.node = node = child
            request.stored = column + 1

    def detach(self, request: Request) -> None:
        """Take all pages from a request whose row is no longer its own."""
        self.store(request, request.computed)
        for g, pages in enumerate(request.pages):
            for page in pages[request.given_back[g] :]:
                self.cache.give_back(g, page)
        assert request.node is not None
        self.cache.unlock(request.node)
        request.node, request.pages = None, []

    def flush(self) -> None:
        self.cache.flush()

    def _wanted(self, request: Request) -> list[int]:
        """Pages by group that it still needs for its known tokens and some output: the more
        output, the more often it has been retracted, so that it is not retracted for ever."""
        room = self._page_size << 2 * request.retractions
        ahead = min(request.length + room, request.limit - 1)
        columns = max(0, -(-(ahead - request.capacity) // self._page_size))
        held = [len(p) - back for p, back in zip(request.pages, request.given_back, strict=True)]
        return [
            min(columns, max(0, peak - count))
            for peak, count in zip(self._peaks, held, strict=True)
        ]

    def _fits(self, need: list[int], reserve: list[int]) -> bool:
        pools = zip(self.pools, need, reserve, strict=True)
        return all(pool.num_available >= wanted + kept for pool, wanted, kept in pools)

    def _slide(self, request: Request) -> None:
        """Give back the pages that lie wholly behind the window of the next token."""
        for g, group in enumerate(self._groups):
            if group.window is None:
                continue
            behind = (request.computed - group.window + 1) // self._page_size
            for column in range(request.given_back[g], behind):
                self.cache.give_back(g, request.pages[g][column])
                request.pages[g][column] = 0
                request.given_back[g] = column + 1
                self.writes.append(PageWrite(g, request.row, column, 0))
