"""Who owns which KV page: a pool of page ids with reference counts for each KV group.

Knows nothing about tokens, requests or what a page holds. Every page but the null page 0 is in
exactly one of three states:

    free        no reference
    evictable   one reference, that of the prefix cache: may be taken back at any time
    in use      referenced by running requests, and perhaps by the prefix cache
"""

from dataclasses import dataclass

from inferplane.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KVGroupPages:
    """The pages of one KV group. `num_pages` counts the null page 0. `window`: how many tokens
    attention sees, the query's own included; None for all. `page_size` None: the scheduler's."""

    name: str
    num_pages: int
    window: int | None = None
    page_size: int | None = None

    def verify(self, page_size: int) -> None:
        if self.page_size not in (None, page_size):
            raise ConfigError(
                f"KV group {self.name} has pages of {self.page_size} tokens, others of {page_size}:"
                " all groups must have one page size, set --page-size"
            )
        if self.num_pages < 2:
            raise ConfigError(
                f"KV group {self.name} has {max(self.num_pages - 1, 0)} pages: raise"
                " --memory-fraction or --kv-cache-tokens, or lower --max-model-len"
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"KV group {self.name} has window {self.window}, must be at least 1")

    def pages_for(self, length: int, page_size: int) -> int:
        """Most pages that a sequence of so many tokens needs at a time, computed one by one."""
        pages = -(-length // page_size)
        if self.window is None:
            return pages
        return min(pages, 1 + -(-(self.window - 1) // page_size))


class PageAllocator:
    """Reference counts of one group's pages. The lowest free ids are handed out first at start,
    later those freed last."""

    def __init__(self, num_pages: int) -> None:
        self._free = list(range(num_pages - 1, 0, -1))
        self._refs = [0] * num_pages
        self._cached = bytearray(num_pages)
        self.num_usable = num_pages - 1
        self.num_evictable = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Free, or free once the prefix cache gives them up."""
        return len(self._free) + self.num_evictable

    def refs(self, page: int) -> int:
        return self._refs[page]

    def is_evictable(self, page: int) -> bool:
        return self._refs[page] == 1 and self._cached[page] == 1

    def alloc(self) -> int:
        """A free page with one reference. The caller has made sure that there is one."""
        page = self._free.pop()
        self._refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder of a page that has one."""
        refs = self._refs[page]
        assert refs > 0, f"page {page} is free"
        if refs == 1 and self._cached[page]:
            self.num_evictable -= 1
        self._refs[page] = refs + 1

    def release(self, page: int) -> None:
        """One holder less; the page is free when there is none left."""
        refs = self._refs[page] - 1
        assert refs >= 0, f"page {page} is released too often"
        self._refs[page] = refs
        if refs == 0:
            self._free.append(page)
        elif refs == 1 and self._cached[page]:
            self.num_evictable += 1

    def cache(self, page: int) -> None:
        """The prefix cache becomes a holder of this page, which a request holds."""
        assert not self._cached[page], f"page {page} is cached twice"
        self.share(page)
        self._cached[page] = 1

    def uncache(self, page: int) -> None:
        """The prefix cache gives up its reference."""
        assert self._cached[page], f"page {page} is not cached"
        if self._refs[page] == 1:
            self.num_evictable -= 1
        self._cached[page] = 0
        self.release(page)
