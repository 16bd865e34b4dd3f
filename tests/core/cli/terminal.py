"""A program in a pseudo-terminal, driven by what it prints."""

import contextlib
import os
import pty
import select
import subprocess
import time

DEADLINE = 120


class Terminal:
    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._end, inner = pty.openpty()
        self.process = subprocess.Popen(
            command,
            env={**environment, "TERM": "dumb"},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            preexec_fn=_take_terminal,
        )
        os.close(inner)
        self._pending = ""

    def wait_for(self, text: str) -> str:
        """What was printed up to and with `text`. Fails if the program ends or stays silent."""
        end = time.monotonic() + DEADLINE
        while text not in self._pending:
            ready, _, _ = select.select([self._end], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come, but {self._pending!r}"
            try:
                new = os.read(self._end, 65536)
            except OSError:  # how Linux tells that the other end was closed
                new = b""
            assert new, f"the program ended before {text!r}: {self._pending!r}"
            self._pending += new.decode("utf-8", "replace")
        before, _, self._pending = self._pending.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt(self) -> int:
        """Ctrl-C until the program leaves; its exit status. Once, on a busy machine, a key at the
        moment of the prompt was lost, why is not known; a person presses it again."""
        for _ in range(6):
            self.type("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
                break
        return self.close()

    def close(self) -> int:
        """Wait for the program's own end."""
        try:
            return self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._end)


def _take_terminal() -> None:
    """Make the pseudo-terminal the one whose Ctrl-C reaches the child."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
