"""Forks, streams and errors."""

import asyncio
import threading
from typing import Any

import pytest

import inferplane.lang as sgl
from inferplane.errors import ProgramError
from inferplane.lang.state import ProgramState
from tests.core.lang.fake import FakeBackend

WAIT = 30


def test_forks_run_side_by_side_and_share_what_came_before() -> None:
    """Each call waits for all others to have begun."""
    together = threading.Barrier(3, timeout=WAIT)
    fake = FakeBackend(on_call=lambda prompt: together.wait() if "Tip " in prompt else None)

    @sgl.function
    def program(s: Any) -> None:
        s += "Tips:\n"
        forks = s.fork(3)
        forks += lambda i: f"Tip {i}:" + sgl.gen("tip")
        forks.join()
        s += sgl.gen("end")

    state = program.run(backend=fake)
    assert fake.prefilled == ["Tips:\n"]
    assert sorted(fake.prompts) == ["Tips:\n", *(f"Tips:\nTip {i}:" for i in range(3))]
    assert state["tip"] == [" 3 words"] * 3
    assert state.get_meta_info("tip") == [{"sample": 0, "words": 2}] * 3
    assert state.text() == "Tips:\n 1 words"


def test_appending_does_not_wait_for_the_model() -> None:
    go = threading.Event()
    fake = FakeBackend(on_call=lambda prompt: None if go.wait(WAIT) else pytest.fail("waited"))

    @sgl.function
    def program(s: Any) -> None:
        s += "a" + sgl.gen("x") + "b"
        go.set()
        s += "c" + sgl.gen("y")

    assert program.run(backend=fake).text() == "a 1 wordsbc 3 words"


def test_join_appends_what_forks_said(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any, facts: list[str]) -> None:
        s += "Facts."
        forks = s.fork(len(facts))
        forks += [f" {fact}" for fact in facts]
        forks[1] += sgl.gen("x")
        forks.join(mode="concate_and_append")
        s += " So" + sgl.gen("y")

    state = program.run(facts=["One.", "Two."], backend=fake)
    assert state.text() == "Facts. One. Two. 2 words So 6 words"
    with pytest.raises(ProgramError, match="no variable 'x'; it has: y"):
        _ = state["x"]


def test_forks_of_an_open_message_append_to_it(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("List") + sgl.assistant_begin()
        with s.fork(2) as forks:
            forks += lambda i: f"{i}:" + sgl.gen("x")
        s += "both" + sgl.assistant_end()

    state = program.run(backend=fake)
    assert state["x"] == [" 4 words"] * 2
    assert state.messages()[-1] == {"role": "assistant", "content": "both"}


def test_a_copy_leaves_its_source_alone(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a" + sgl.gen("x")
        with s.copy() as other:
            other += " b" + sgl.gen("y")
        s.set_var("of_copy", other["y"])
        assert other["x"] == s["x"]

    state = program.run(backend=fake)
    assert state.text() == "a 1 words"
    assert state["of_copy"] == " 4 words" and fake.prefilled == []


def test_a_group_refuses_what_does_not_fit(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        with pytest.raises(ProgramError, match="3 values for 2 forks"):
            forks += ["a", "b", "c"]
        with pytest.raises(ProgramError, match="cannot be replaced"):
            forks[0] = forks[1]
        with pytest.raises(ProgramError, match="join mode is 'add'"):
            forks.join("add")
        with pytest.raises(ProgramError, match=r"fork\(0\)"):
            s.fork(0)
        assert len(forks) == 2 and [fork.text() for fork in forks] == ["", ""]

    program.run(backend=fake)


# Streams


@sgl.function
def talk(s: Any) -> None:
    s += sgl.user("Hi there") + sgl.assistant(sgl.gen("one"))
    s += sgl.user("And?") + sgl.assistant("So" + sgl.gen("two"))


def test_a_stream_gives_pieces_in_order(fake: FakeBackend) -> None:
    state = talk.run(backend=fake, stream=True)
    pieces = list(state.text_iter())
    assert pieces[:3] == ["user: Hi there\nassistant: ", " 4", " words"]
    assert "".join(pieces) == state.text()
    assert list(state.text_iter()) == pieces  # as often as one likes
    assert list(state.text_iter("two")) == [" 10", " words"]
    assert state.get_meta_info("two") == {"pieces": 3}
    assert fake.closed_streams == 2


def test_a_stream_of_one_variable_comes_while_it_is_made() -> None:
    """The second call is not made before the first variable has been read."""
    read = threading.Event()

    def on_call(prompt: str) -> None:
        if "And?" in prompt and not read.wait(WAIT):
            pytest.fail("nobody read the first answer")

    state = talk.run(backend=FakeBackend(on_call=on_call), stream=True)
    assert "".join(state.text_iter("one")) == " 4 words"
    assert state["one"] == " 4 words"
    read.set()
    assert state["two"] == " 10 words"


@pytest.mark.parametrize("read", [lambda s: s["x"], lambda s: s.text(), lambda s: s.messages()])
def test_a_reader_waits_for_a_program_that_has_not_got_there(
    read: Any, fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program goes on when the reader has begun to wait."""
    go = threading.Event()

    @sgl.function
    def program(s: Any) -> None:
        assert go.wait(WAIT)
        s += sgl.user("a") + sgl.assistant(sgl.gen("x"))

    state = program.run(backend=fake, stream=True)
    changed = state._executor.changed
    wait_for = changed.wait_for

    def watched(predicate: Any) -> Any:
        go.set()
        return wait_for(predicate)

    monkeypatch.setattr(changed, "wait_for", watched)
    assert read(state)


def test_an_async_stream(fake: FakeBackend) -> None:
    async def read(state: ProgramState, name: str | None) -> list[str]:
        return [piece async for piece in state.text_async_iter(name)]

    async def main() -> tuple[list[str], list[str], list[str]]:
        state = talk.run(backend=fake, stream=True)
        whole, one = await asyncio.gather(read(state, None), read(state, "one"))
        return whole, one, await read(talk.run(backend=fake), "one")

    whole, one, late = asyncio.run(main())
    assert one == [" 4", " words"]
    assert "".join(whole).endswith("assistant: So 10 words\n")
    assert late == [" 4 words"]


def test_scopes_and_selections_are_streamed_whole(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        with s.var_scope("all"):
            s += "x " + sgl.select("pick", ["b", "a"]) + sgl.gen("two", n=2)

    state = program.run(backend=fake, stream=True)
    assert list(state.text_iter("pick")) == ["a"]
    assert list(state.text_iter("all")) == ["x a 2 words"]
    assert list(state.text_iter("two")) == [" 2 words"]
    with pytest.raises(ProgramError, match="no variable 'nix'"):
        list(state.text_iter("nix"))


# Errors


def fail_at(word: str) -> FakeBackend:
    def on_call(prompt: str) -> None:
        if word in prompt:
            raise ValueError("the model is on fire")

    return FakeBackend(on_call=on_call)


def test_an_error_names_the_variable() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "fine" + sgl.gen("one")
        s += "bad" + sgl.gen("two") + sgl.gen("three")

    with pytest.raises(ProgramError, match=r"gen\(two\) failed: the model is on fire") as caught:
        program.run(backend=fail_at("bad"))
    assert isinstance(caught.value.__cause__, ValueError)


def test_waiting_for_a_variable_that_fails_raises() -> None:
    backend = fail_at("bad")

    @sgl.function
    def program(s: Any) -> None:
        s += "bad" + sgl.select("one", ["a", "b"]) + sgl.gen("two")
        with pytest.raises(ProgramError, match=r"select\(one\) failed"):
            _ = s["two"]
        with pytest.raises(ProgramError, match=r"select\(one\) failed"):
            s += "more"

    with pytest.raises(ProgramError, match="on fire"):
        program.run(backend=backend)
    assert len(backend.calls) == 1


@pytest.mark.parametrize("join", [True, False])
def test_an_error_in_a_fork_is_the_programs(join: bool) -> None:
    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        forks += lambda i: ("bad", "good")[i] + sgl.gen("x")
        if join:
            forks.join()

    with pytest.raises(ProgramError, match=r"gen\(x\) failed: the model is on fire"):
        program.run(backend=fail_at("bad"))


def test_an_error_ends_a_stream_after_what_came_before() -> None:
    state = talk.run(backend=fail_at("And?"), stream=True)
    assert list(state.text_iter("one")) == [" 4", " words"]
    pieces = []
    with pytest.raises(ProgramError, match=r"gen\(two\) failed"):
        for piece in state.text_iter():
            pieces.append(piece)
    assert pieces[1:3] == [" 4", " words"]
    assert isinstance(state.error(), ProgramError)
    with pytest.raises(ProgramError, match=r"gen\(two\) failed"):
        _ = state["two"]


def test_what_the_program_itself_raises_comes_out(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen("x")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        program.run(backend=fake)
    state = program.run(backend=fake, stream=True)
    with pytest.raises(KeyError, match="mine"):
        list(state.text_iter())


def test_a_missing_variable_does_not_wait(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen("here")
        _ = s["there"]

    with pytest.raises(ProgramError, match="no variable 'there'; it has: "):
        program.run(backend=fake)
    state = program.run(backend=fake, stream=True)
    with pytest.raises(ProgramError, match="no variable 'there'"):
        state.sync()
        list(state.text_iter("there"))


def test_no_threads_are_left(fake: FakeBackend) -> None:
    talk.run_batch([{}] * 5, backend=fake)
    names = [thread.name for thread in threading.enumerate()]
    assert not [n for n in names if n.startswith("inferplane-lang") or "batch" in n]
