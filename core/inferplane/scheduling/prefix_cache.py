"""Which computed pages can serve which prompt: a tree with one node for each full page of tokens.

Knows nothing about requests or steps. A path from a namespace's root spells a prefix; `pages[g]`
of its nodes hold that prefix's KV in group g. 0 stands for a page that is not kept: window groups
lose pages singly, full groups only with their node. Only leaves are removed, so a request that
locks the deepest node of its path keeps the whole path.
"""

from array import array
from heapq import heapify, heappop, heappush

from inferplane.scheduling.pages import KVGroupPages, PageAllocator


class Node:
    """One page of tokens that follows its parent's. `key`: the token ids as bytes (of a root: its
    namespace). `users`: requests whose path ends here. `last_used`: tick of the last unlock.
    `serial`: which node came first, so that equally old ones have an order."""

    __slots__ = ("children", "key", "last_used", "pages", "parent", "serial", "users")

    def __init__(
        self, key: bytes | str, parent: "Node | None", pages: list[int], serial: int
    ) -> None:
        self.key = key
        self.serial = serial
        self.parent = parent
        self.pages = pages
        self.children: dict[bytes | str, Node] = {}
        self.users = 0
        self.last_used = 0


class PrefixCache:
    """Holds one reference to each page in the tree; requests hold their own.

    A request must hold the full groups' pages of every node above the one that it locks: then a
    page with one reference is exactly a page that `evict` can reclaim.
    """

    def __init__(
        self, page_size: int, groups: list[KVGroupPages], allocators: list[PageAllocator]
    ) -> None:
        self._page_size = page_size
        self._groups = groups
        self._allocators = allocators
        self._nothing = [0] * len(groups)
        self._top = Node("", None, self._nothing, 0)
        self._top.users = 1
        self._tick = 0
        self._made = 0
        self.num_nodes = 0
        # Least recently used first. An entry is stale unless its tick is still the current one.
        self._leaves: list[tuple[int, int, Node]] = []
        self._window_pages: list[list[tuple[int, int]]] = [[] for _ in groups]
        self._released = [[0] * group.num_pages for group in groups]  # when, by page
        self._owner: list[dict[int, Node]] = [{} for _ in groups]

    def match(self, namespace: str, tokens: "array[int]", limit: int) -> list[Node]:
        """The nodes of the longest usable prefix of tokens[:limit], the namespace's root first.

        Full groups need every page, window groups those with the last window - 1 tokens.
        """
        node = self._root(namespace)
        path, usable = [node], 1
        size = self._page_size
        runs = [0] * len(self._groups)  # pages without a gap up to here
        for end in range(size, limit + 1, size):
            child = node.children.get(tokens[end - size : end].tobytes())
            if child is None:
                break
            node = child
            path.append(node)
            fits = True
            for g, group in enumerate(self._groups):
                runs[g] = runs[g] + 1 if node.pages[g] else 0
                first = 0 if group.window is None else max(0, end - group.window + 1) // size
                fits = fits and runs[g] >= len(path) - 1 - first
            if fits:
                usable = len(path)
        return path[:usable]

    def lock(self, node: Node) -> None:
        node.users += 1

    def unlock(self, node: Node) -> None:
        node.users -= 1
        self._tick += 1
        node.last_used = self._tick
        self._retire(node)

    def extend(self, node: Node, key: bytes, pages: list[int]) -> Node:
        """The child of `node` for a page of tokens, made if need be. Takes a reference of those
        `pages` that it has no page for."""
        child = node.children.get(key)
        if child is None:
            child = self._add(node, key)
        for g, page in enumerate(pages):
            if page and not child.pages[g]:
                self._allocators[g].cache(page)
                child.pages[g] = page
                self._owner[g][page] = child
        return child

    def give_back(self, group: int, page: int) -> None:
        """A request needs its page no more."""
        allocator = self._allocators[group]
        allocator.release(page)
        if self._groups[group].window is not None and allocator.is_evictable(page):
            self._tick += 1
            self._released[group][page] = self._tick
            heap = self._window_pages[group]
            heappush(heap, (self._tick, page))
            if len(heap) > 2 * allocator.num_usable + 64:
                heap[:] = [item for item in heap if self._released[group][item[1]] == item[0]]
                heapify(heap)

    def evict(self, group: int) -> bool:
        """Free a page of this group, the least recently used. False if there is none to free."""
        if self._groups[group].window is None:
            return self._evict_leaf()
        heap, allocator = self._window_pages[group], self._allocators[group]
        while heap:
            tick, page = heappop(heap)
            if self._released[group][page] != tick or not allocator.is_evictable(page):
                continue
            node = self._owner[group][page]
            self._drop_page(node, group)
            if not any(node.pages):
                self._retire(node)
            return True
        return False

    def flush(self) -> None:
        """Drop everything that no running request uses."""
        while self._evict_leaf():
            pass
        for g, group in enumerate(self._groups):
            while group.window is not None and self.evict(g):
                pass

    def nodes(self) -> list[Node]:
        """All nodes, for tests and the simulation."""
        found = list(self._top.children.values())
        for node in found:
            found.extend(node.children.values())
        return found

    def _root(self, namespace: str) -> Node:
        return self._top.children.get(namespace) or self._add(self._top, namespace)

    def _add(self, parent: Node, key: bytes | str) -> Node:
        self._made += 1
        self.num_nodes += 1
        node = parent.children[key] = Node(key, parent, list(self._nothing), self._made)
        return node

    def _retire(self, node: Node) -> None:
        """Note that a node may have become a removable leaf; remove it now if it holds nothing."""
        while not node.users and not node.children:
            if any(node.pages):
                heappush(self._leaves, (node.last_used, node.serial, node))
                if len(self._leaves) > 2 * self.num_nodes + 64:
                    self._leaves = [item for item in self._leaves if self._is_current(item)]
                    heapify(self._leaves)
                return
            node = self._remove(node)

    def _is_current(self, item: tuple[int, int, Node]) -> bool:
        tick, _, node = item
        return (
            node.last_used == tick
            and not node.users
            and not node.children
            and node.parent is not None
        )

    def _evict_leaf(self) -> bool:
        while self._leaves:
            item = heappop(self._leaves)
            if self._is_current(item):
                node = item[2]
                for g, page in enumerate(node.pages):
                    if page:
                        self._drop_page(node, g)
                self._retire(self._remove(node))
                return True
        return False

    def _drop_page(self, node: Node, group: int) -> None:
        page = node.pages[group]
        node.pages[group] = 0
        del self._owner[group][page]
        self._allocators[group].uncache(page)

    def _remove(self, node: Node) -> Node:
        """Unlink a leaf. Returns its parent, which may be one now."""
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        node.parent = None
        self.num_nodes -= 1
        return parent
