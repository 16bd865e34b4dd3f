"""Progress of long work on standard error: one line that is rewritten, on a terminal only."""

import sys
from typing import TextIO


class Line:
    """`show` rewrites it, `clear` removes it."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._shown = ""

    def show(self, text: str) -> None:
        if text != self._shown and self._out.isatty():
            print(f"\r{text:<{len(self._shown)}}", end="", file=self._out, flush=True)
            self._shown = text

    def clear(self) -> None:
        if self._shown:
            print(f"\r{'':<{len(self._shown)}}\r", end="", file=self._out, flush=True)
            self._shown = ""


class LoadingBar:
    """Reports weights as they are read."""

    WIDTH = 30

    def __init__(self, line: Line) -> None:
        self._line = line

    def __call__(self, done: int, total: int) -> None:
        filled = self.WIDTH * done // max(total, 1)
        bar = "#" * filled + "-" * (self.WIDTH - filled)
        self._line.show(f"loading weights [{bar}] {100 * done // max(total, 1):3d} %")
        if done >= total:
            self._line.clear()
