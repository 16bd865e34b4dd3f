"""What must hold of a Scheduler's pages, rows and lists between any two calls, recounted from
scratch. Looks inside on purpose; knows nothing about what the requests should compute."""

from collections import Counter

from inferplane.hw.batch import StepPlan
from inferplane.scheduling.prefix_cache import Node
from inferplane.scheduling.scheduler import Scheduler
from inferplane.testing.hash_device import SimulationError


def require(condition: bool, what: str, *details: object) -> None:
    if not condition:
        raise SimulationError(" ".join([what, *map(repr, details)]))


def verify_scheduler(scheduler: Scheduler) -> None:
    """Raises SimulationError for the first thing that is wrong."""
    running, waiting = scheduler._running, scheduler._waiting
    for requests in (running, waiting):
        orders = [request.order for request in requests]
        require(orders == sorted(orders), "not in order of seniority:", orders)
    rows = sorted(scheduler._free_rows + [request.row for request in running])
    require(rows == list(range(1, len(rows) + 1)), "rows are lost or doubled:", rows)
    known = {request.request_id for request in [*running, *waiting]}
    require(known == set(scheduler._requests), "requests are lost:", known)
    nodes = scheduler._memory.cache.nodes()
    require(scheduler._memory.cache.num_nodes == len(nodes), "nodes are miscounted:", len(nodes))
    users = Counter(id(request.node) for request in running)
    for node in nodes:
        require(node.users == users[id(node)], "a node has wrong users:", node.key, node.users)
        alive = node.users or node.children or any(node.pages)
        require(bool(alive), "an empty node is kept:", node.key)
    _verify_pages(scheduler, nodes)


def _verify_pages(scheduler: Scheduler, nodes: list[Node]) -> None:
    memory = scheduler._memory
    for g, pool in enumerate(memory.pools):
        refs, cached = [0] * (pool.num_usable + 1), set()
        for request in scheduler._running:
            pages, back = request.pages[g], request.given_back[g]
            require(not any(pages[:back]) and all(pages[back:]), "page table has gaps:", pages)
            full = len(pages) * memory._page_size
            require(full == request.capacity >= request.computed, "wrong capacity:", full)
            for page in pages[back:]:
                refs[page] += 1
            if memory._groups[g].window is None:
                path: list[int] = []
                node = request.node
                while node is not None and node.parent is not None:
                    path.insert(0, node.pages[g])
                    node = node.parent
                require(path[1:] == pages[: request.stored], "path differs:", path, pages)
        for node in nodes:
            page = node.pages[g]
            if page:
                require(page not in cached, "a page is cached twice:", page)
                cached.add(page)
                refs[page] += 1
        counted = [pool.refs(page) for page in range(len(refs))]
        require(refs == counted, f"group {g}: references should be {refs}, are", counted)
        free = [page for page in range(1, len(refs)) if refs[page] == 0]
        require(sorted(pool._free) == free, "free pages are wrong:", pool._free)
        evictable = [page for page in cached if refs[page] == 1]
        require(len(evictable) == pool.num_evictable, "evictable:", pool.num_evictable)


def verify_progress(scheduler: Scheduler, plan: StepPlan | None) -> None:
    """The most senior running request computes in every step until all its tokens are."""
    if scheduler._running:
        first = scheduler._running[0]
        served = plan is not None and first.row in plan.rows
        require(served or first.length >= first.limit, "the most senior waits:", first.request_id)


def verify_idle(scheduler: Scheduler) -> None:
    """After the last request: everything is free once the cache is flushed."""
    verify_scheduler(scheduler)
    scheduler.flush_cache()
    stats = scheduler.stats()
    require(stats.pages_free == stats.pages_total, "pages are lost:", stats)
    require(scheduler._memory.cache.num_nodes == 0, "nodes remain after a flush")
    require(not scheduler.has_work, "an idle scheduler has work")
