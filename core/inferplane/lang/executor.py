"""Carries out what is appended to one state, in order, in a thread that lives while there is work.

So forks of a state run side by side, and appending a call of the model does not wait for it.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from inferplane.errors import InferplaneError, ProgramError
from inferplane.lang.backend import Answer, Backend
from inferplane.lang.expressions import (
    Gen,
    Image,
    Part,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Text,
)
from inferplane.lang.reasoning import Apart, taken_apart, variable_of
from inferplane.lang.sampling import Sampling
from inferplane.lang.transcript import Transcript


@dataclass
class Feed:
    """Pieces of text as they come, for any number of readers. `closed`: there will be no more."""

    pieces: list[str] = field(default_factory=list)
    closed: bool = False


class Executor:
    """The state of a program, or of a fork of one.

    Everything below is guarded by `changed`, which is notified of every change. `transcript` and
    `variables` may be read without it once `sync` has returned.
    """

    def __init__(
        self,
        backend: Backend,
        defaults: Sampling,
        *,
        transcript: Transcript | None = None,
        variables: dict[str, Any] | None = None,
        streaming: bool = False,
        running: bool = False,
    ) -> None:
        """`streaming`: calls are made piece by piece, for `feed`. `running`: a program in another
        thread appends, so that readers wait for what is not there yet; ended by `finish`."""
        self.backend = backend
        self.defaults = defaults
        self.streaming = streaming
        self.transcript = transcript or Transcript()
        self.variables: dict[str, Any] = dict(variables or {})
        self.meta: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.children: list[Executor] = []
        self.changed = threading.Condition()
        self._feeds: dict[str | None, Feed] = {None: Feed()}
        self._shown = ""  # what readers of the whole text have got
        self._scopes: dict[str, int] = {}
        self._promised: Counter[str] = Counter()  # variables that are queued or being made
        self._queue: deque[Part] = deque()
        self._working = False
        self._running = running
        self._author: int | None = None  # the thread of the program that appends
        self._listeners: list[Callable[[], None]] = []

    def submit(self, parts: Sequence[Part]) -> None:
        """Queue parts. Raises what an earlier one has failed with."""
        with self.changed:
            self._raise()
            self._queue.extend(parts)
            for part in parts:
                self._promised.update(_made_by(part))
            if self._working:
                return
            self._run_ready()
            if self._queue:
                self._working = True
                threading.Thread(target=self._work, name="inferplane-lang", daemon=True).start()

    def sync(self) -> None:
        """Wait until everything appended has been carried out, here and in forks; outside of the
        program until it has ended. Raises what has failed."""
        with self.changed:
            self.changed.wait_for(lambda: not (self._working or self._others_append()))
            self._raise()
        for child in self.children:
            child.sync()

    def wait_for(self, name: str) -> Any:
        """The value of a variable, as soon as it is there."""
        with self.changed:
            self.changed.wait_for(lambda: not self._may_come(name))
            self._raise()
            if name in self.variables:
                return self.variables[name]
            known = ", ".join(self.variables) or "none"
            raise ProgramError(f"the program has no variable {name!r}; it has: {known}")

    def _may_come(self, name: str) -> bool:
        if self.error is not None:
            return False
        if self._promised[name]:
            return True
        return self._others_append() and name not in self.variables

    def _others_append(self) -> bool:
        return self._running and self._author != threading.get_ident()

    def set(self, name: str, value: Any) -> None:
        with self.changed:
            self.variables[name] = value
            self._notify()

    def start(self) -> None:
        """The calling thread is the program's."""
        self._author = threading.get_ident()

    def finish(self, error: BaseException | None = None) -> None:
        """The program will append nothing more."""
        if self.streaming and error is None:
            with suppress(InferplaneError):  # some templates refuse what has no answer yet
                self._show_prompt()
        with self.changed:
            self.error = self.error or error
            self._running = False
            for feed in self._feeds.values():
                feed.closed = feed.closed or self.error is None
            self._notify()

    def fork(self) -> "Executor":
        """A state that goes on from here by itself; nothing may be under way."""
        child = Executor(
            self.backend,
            self.defaults,
            transcript=self.transcript.copy(),
            variables=self.variables,
        )
        child._author = self._author
        self.children.append(child)
        return child

    # The stream

    def read(self, name: str | None, seen: int) -> tuple[list[str], bool]:
        """The pieces from number `seen` on, and whether they are the last; `changed` is held.
        Raises what has failed once all pieces before have been read."""
        feed = self._feeds.get(name)
        new = [] if feed is None else feed.pieces[seen:]
        if new:
            return new, False
        if feed is not None and feed.closed:
            return [], True
        self._raise()
        if not self._running and not self._working:
            if feed is None and name not in self.variables:
                raise ProgramError(f"the program has no variable {name!r}")
            return [], True
        return [], False

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it, in any thread, at every change."""
        with self.changed:
            self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        with self.changed:
            self._listeners.remove(listener)

    def _notify(self) -> None:
        self.changed.notify_all()
        for listener in self._listeners:
            listener()

    # The work

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _run_ready(self) -> None:
        """Carry out what takes no time; `changed` is held."""
        while self._queue and not isinstance(self._queue[0], Gen | Select):
            self._append(self._queue.popleft())
        self._notify()

    def _append(self, part: Part) -> None:
        if isinstance(part, ScopeBegin):
            self._scopes[part.name] = len(self.transcript.items)
        elif isinstance(part, ScopeEnd):
            text = self.transcript.text_since(self._scopes.pop(part.name))
            self._keep(part.name, text)
            self._feeds[part.name] = Feed([text], closed=True)
        elif isinstance(part, Text | Image | RoleBegin | RoleEnd):
            self.transcript.add(part)

    def _work(self) -> None:
        part: Part | None = None
        try:
            while (part := self._next()) is not None:
                if isinstance(part, Gen):
                    self._gen(part)
                elif isinstance(part, Select):
                    self._select(part)
        except Exception as error:  # for whoever waits
            self._fail(part, error)

    def _next(self) -> Part | None:
        with self.changed:
            self._run_ready()
            if self._queue:
                return self._queue.popleft()
            self._working = False
            return None

    def _gen(self, part: Gen) -> None:
        sampling = part.sampling.over(self.defaults)
        if part.reasoning and self.backend.keeps_tokens:
            sampling = replace(sampling, skip_special_tokens=False)
        if self.streaming and (sampling.n or 1) == 1:
            answers = [self._stream(part, sampling)]
        else:
            answers = self.backend.generate(self.transcript, sampling)
            if part.reasoning:
                prompt = self.backend.text(self.transcript)
                parted = [taken_apart(part.reasoning, prompt, a.text) for a in answers]
                answers = [
                    Answer(text, a.meta, a.reasoning + thought)
                    for a, (text, thought) in zip(answers, parted, strict=True)
                ]
            self._show(part.name, answers[0].text)
        texts, metas = [a.text for a in answers], [a.meta for a in answers]
        single = len(answers) == 1
        if part.reasoning and part.name is not None:
            thoughts = [a.reasoning for a in answers]
            with self.changed:
                self._keep(variable_of(part.name), thoughts[0] if single else thoughts)
        self._took(part, texts[0], texts[0] if single else texts, metas[0] if single else metas)

    def _select(self, part: Select) -> None:
        answer = self.backend.select(self.transcript, part.choices, part.method)
        self._show(part.name, answer.text)
        self._took(part, answer.text, answer.text, answer.meta)

    def _took(self, part: Gen | Select, text: str, value: Any, meta: Any) -> None:
        with self.changed:
            if text:
                self.transcript.add(Text(text))
            if part.name is not None:
                self.meta[part.name] = meta
                self._keep(part.name, value)
            for name in _made_by(part):
                if name in self._feeds:
                    self._feeds[name].closed = True
            self._notify()

    def _keep(self, name: str, value: Any) -> None:
        self.variables[name] = value
        self._promised[name] -= 1

    def _stream(self, part: Gen, sampling: Sampling) -> Answer:
        text, thought, meta = "", "", {}
        self._show_prompt()
        apart = None
        if part.reasoning:
            apart = Apart(part.reasoning, self.backend.text(self.transcript))
        with closing(self.backend.stream(self.transcript, sampling)) as pieces:
            for piece in pieces:
                meta = piece.meta
                said, thinks = apart.push(piece.text) if apart else (piece.text, "")
                thinks = piece.reasoning + thinks
                text, thought = text + said, thought + thinks
                self._show_both(part, said, thinks)
        if apart:
            said, thinks = apart.flush()
            text, thought = text + said, thought + thinks
            self._show_both(part, said, thinks)
        return Answer(text, meta, thought)

    def _show_both(self, part: Gen, text: str, thought: str) -> None:
        """Reasoning is no part of the whole text."""
        if thought and part.name is not None:
            with self.changed:
                self._feeds.setdefault(variable_of(part.name), Feed()).pieces.append(thought)
                self._notify()
        if text or not part.reasoning:
            self._show(part.name, text)

    def _show_prompt(self) -> None:
        """To readers of the whole text; a template that rewrites what it wrote adds nothing."""
        text = self.backend.text(self.transcript)
        if text.startswith(self._shown):
            self._show(None, text[len(self._shown) :])

    def _show(self, name: str | None, piece: str) -> None:
        if not self.streaming:
            return
        with self.changed:
            self._shown += piece
            for key in {None, name}:
                self._feeds.setdefault(key, Feed()).pieces.append(piece)
            self._notify()

    def _fail(self, part: Part | None, error: Exception) -> None:
        call = "select" if isinstance(part, Select) else "gen"
        name = part.name if isinstance(part, Gen | Select) else None
        told = ProgramError(f"{call}({name or ''}) failed: {error}")
        told.__cause__ = error
        with self.changed:
            self.error = told
            self._queue.clear()
            self._promised.clear()
            self._working = False
            self._notify()


def _made_by(part: Part) -> list[str]:
    """The variables that a part makes."""
    if isinstance(part, Gen):
        return part.names
    if isinstance(part, Select | ScopeEnd) and part.name is not None:
        return [part.name]
    return []
