"""A server as ordinary threads see it: requests that wait, answers that come piece by piece."""

import threading
import weakref
from collections.abc import Generator, Mapping
from typing import Any

from inferplane.background import Background
from inferplane.remote import Remote


class Connection:
    """Closed when it is no longer used, or by `close`."""

    def __init__(self, url: str, key: str | None, headers: Mapping[str, str] | None = None) -> None:
        self._remote = Remote(url, key, headers)
        self._background = Background("inferplane-lang-http")
        self._close = weakref.finalize(self, _close, self._background)
        self.url = self._remote.url

    def get(self, path: str) -> Any:
        return self._background.run(self._remote.get(path))

    def post(self, path: str, body: Any) -> Any:
        return self._background.run(self._remote.post(path, body))

    def tell(self, path: str) -> None:
        self._background.run(self._remote.tell(path))

    def events(self, path: str, body: Any) -> Generator[Any, None, None]:
        return self._background.iterate(self._remote.events(path, body))

    def close(self) -> None:
        self._close()


def _close(background: Background) -> None:
    if background.is_current:  # the garbage collector may run anywhere
        threading.Thread(target=background.close).start()
    else:
        background.close()
