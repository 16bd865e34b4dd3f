"""Batches of runs, and what they begin with."""

import threading
from typing import Any

import pytest

import inferplane.lang as sgl
from inferplane.errors import InferplaneError, ProgramError
from tests.core.lang.fake import FakeBackend

QUESTIONS = [{"question": f"{i}?"} for i in range(7)]


@sgl.function
def ask(s: Any, question: str, shots: str = "none") -> None:
    s += "Shots: " + shots + "\nQ: " + question + "\nA:" + sgl.gen("answer")


def prefix_of(program: Any, *items: Any) -> str:
    """What is computed before a batch of these items runs."""
    fake = FakeBackend()
    program.run_batch(list(items), backend=fake)
    assert len(fake.prefilled) <= 1
    return "".join(fake.prefilled)


def test_results_are_in_the_order_of_the_items(fake: FakeBackend) -> None:
    states = ask.run_batch(QUESTIONS, backend=fake, temperature=0.5, num_threads=3)
    assert [s.text() for s in states] == [
        f"Shots: none\nQ: {i}?\nA: 5 words" for i in range(len(QUESTIONS))
    ]
    assert {sampling.temperature for _, sampling in fake.calls} == {0.5}
    assert [s["answer"] for s in ask.run_batch([["x"], ("y", "z")], backend=fake)]
    assert fake.prompts[-1].startswith("Shots: ")
    assert ask.run_batch([], backend=fake) == []


def test_runs_are_side_by_side_but_no_more_than_threads() -> None:
    together = threading.Barrier(2, timeout=30)
    running, most, lock = 0, 0, threading.Lock()

    def on_call(prompt: str) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1

    ask.run_batch(QUESTIONS[:6], backend=FakeBackend(on_call=on_call), num_threads=2)
    assert most == 2


def test_the_first_failure_is_raised_and_the_rest_does_not_start() -> None:
    def on_call(prompt: str) -> None:
        if "2?" in prompt:
            raise ValueError("on fire")

    fake = FakeBackend(on_call=on_call)
    with pytest.raises(ProgramError, match=r"gen\(answer\) failed: on fire"):
        ask.run_batch(QUESTIONS, backend=fake, num_threads=1)
    assert len(fake.calls) < len(QUESTIONS)


def test_progress_is_shown(fake: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    ask.run_batch(QUESTIONS, backend=fake, progress_bar=True)
    assert "7/7" in capsys.readouterr().err
    ask.run_batch(QUESTIONS, backend=fake)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("items", "threads", "message"),
    [
        ({"question": "x"}, 1, "takes a list"),
        (["x"], 1, "takes a list"),
        ([[1, 2, 3]], 1, "takes 2 arguments, not 3"),
        (QUESTIONS, 0, "num_threads is 0"),
    ],
)
def test_wrong_batches_are_refused(
    items: Any, threads: int, message: str, fake: FakeBackend
) -> None:
    with pytest.raises(ProgramError, match=message):
        ask.run_batch(items, backend=fake, num_threads=threads)


def test_what_all_runs_begin_with_is_computed_once() -> None:
    assert prefix_of(ask, *QUESTIONS) == "Shots: none\nQ: "
    assert prefix_of(ask, QUESTIONS[0]) == ""  # one run shares with none
    shots = [{"question": "a", "shots": "many"}, {"question": "b", "shots": "many"}]
    assert prefix_of(ask, *shots) == "Shots: many\nQ: "
    shots[1]["shots"] = "few"
    assert prefix_of(ask, *shots) == "Shots: "
    assert prefix_of(ask, shots[0], QUESTIONS[0]) == "Shots: "
    assert prefix_of(ask.bind(shots="two"), *QUESTIONS) == "Shots: two\nQ: "


def test_cache_computes_the_beginning_of_all_runs(fake: FakeBackend) -> None:
    assert ask.cache(fake) == "Shots: none\nQ: "
    assert fake.prefilled == ["Shots: none\nQ: "]
    assert sgl.function(lambda s, x: None).cache(fake) == ""


@pytest.mark.parametrize(
    "use",
    [
        lambda s, x: f"{x}",
        lambda s, x: x.upper(),
        lambda s, x: "yes" if x else "no",
        lambda s, x: "same" if x == 3 else "other",
        lambda s, x: str(x),
        lambda s, x: "".join(x),
        lambda s, x: {"a": "b"}[x],
        lambda s, x: x[0],
        lambda s, x: "%s" % x,  # noqa: UP031
        lambda s, x: x + "after",
        lambda s, x: sgl.user(x),
        lambda s, x: sgl.gen("y") + "after",
        lambda s, x: s["y"],
        lambda s, x: s.fork(2),
        lambda s, x: s.text(),
        lambda s, x: 1 / 0,
    ],
)
def test_any_use_of_the_unknown_ends_the_beginning(use: Any) -> None:
    @sgl.function
    def program(s: Any, x: Any) -> None:
        s += "known "
        s += "half " + (use(s, x))
        s += "unreachable"

    with pytest.MonkeyPatch.context() as patch:
        fake = FakeBackend()
        patch.setattr(program, "run", lambda **_: None)
        program.run_batch([{"x": "a"}, {"x": "b"}], backend=fake)
    assert fake.prefilled[0] in ("known ", "known half ", "known half user: ")


def test_roles_and_blocks_are_followed() -> None:
    @sgl.function
    def program(s: Any, x: str) -> None:
        s += sgl.system("Be brief.")
        with s.user(), s.var_scope("all"):
            s += "About " + x

    assert prefix_of(program, ["a"], ["b"]) == "system: Be brief.\nuser: About "


def test_a_backend_that_cannot_prefill_does_not_stop_a_batch(fake: FakeBackend) -> None:
    class Refusing(FakeBackend):
        def prefill(self, transcript: Any) -> None:
            raise InferplaneError("not now")

    assert len(ask.run_batch(QUESTIONS, backend=Refusing())) == len(QUESTIONS)
    with pytest.raises(InferplaneError, match="not now"):
        ask.cache(Refusing())
