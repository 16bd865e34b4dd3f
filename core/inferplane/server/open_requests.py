"""Which sequences run under the names that clients gave them, so that they can be aborted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from inferplane.generation import Sample

Owner = tuple[str, str]
"""(tenant, the tenant's name for the request)"""


class OpenRequests:
    """Names are compared whole and only within a tenant. Several requests may have the same."""

    def __init__(self) -> None:
        self._ids: dict[Owner, set[str]] = {}

    @contextmanager
    def during(self, owners: Sequence[Owner], samples: Sequence[Sample]) -> Iterator[None]:
        """Each of `samples` is known under its owner for as long as the block runs."""
        pairs = list(zip(owners, (sample.submit.request_id for sample in samples), strict=False))
        for owner, identity in pairs:
            self._ids.setdefault(owner, set()).add(identity)
        try:
            yield
        finally:
            for owner, identity in pairs:
                ids = self._ids[owner]
                ids.discard(identity)
                if not ids:
                    del self._ids[owner]

    def named(self, tenant: str, name: str) -> list[str]:
        """The engine's ids of the tenant's sequences that run under exactly this name."""
        return sorted(self._ids.get((tenant, name), ()))

    def of(self, tenant: str) -> list[str]:
        """The engine's ids of all of the tenant's named sequences."""
        found = [ids for (owner, _), ids in self._ids.items() if owner == tenant]
        return sorted(set().union(*found))
