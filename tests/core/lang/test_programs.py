"""What programs of every kind ask of a backend, and what they give back."""

from collections.abc import Iterator
from typing import Any

import pytest

import inferplane.lang as sgl
from inferplane.errors import ProgramError
from inferplane.lang.sampling import REGEX_FLOAT, REGEX_INT
from tests.core.lang.fake import FakeBackend


@sgl.function
def few_shot(s: Any, question: str) -> None:
    s += "Questions with answers.\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n", temperature=0)


@sgl.function
def chat(s: Any, first: str, second: str) -> None:
    s += sgl.system("Be brief.")
    s += sgl.user(first)
    s += sgl.assistant(sgl.gen("one"))
    with s.user():
        s += second
    with s.assistant():
        s += "Well," + sgl.gen("two")


def test_a_gen_continues_what_was_said(fake: FakeBackend) -> None:
    state = few_shot.run(question="Why?", backend=fake)
    prompt = "Questions with answers.\nQ: Why?\nA:"
    assert fake.prompts == [prompt]
    assert state["answer"] == " 6 words"
    assert state.text() == prompt + " 6 words"
    assert state.get_meta_info("answer") == {"sample": 0, "words": 2}
    assert "answer" in state and "other" not in state


def test_sampling_of_a_gen_is_over_that_of_the_run(fake: FakeBackend) -> None:
    few_shot.run(question="Why?", backend=fake, temperature=0.5, top_k=3, max_new_tokens=9)
    sampling = fake.calls[0][1]
    assert (sampling.temperature, sampling.top_k, sampling.max_new_tokens) == (0, 3, 9)
    assert (sampling.stop, sampling.top_p, sampling.n) == (("\n",), 1.0, 1)


def test_every_argument_of_gen_is_passed_on(fake: FakeBackend) -> None:
    asked: dict[str, Any] = {
        "min_tokens": 2,
        "n": 1,
        "stop_token_ids": [7],
        "top_p": 0.5,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "ignore_eos": True,
        "return_logprob": True,
        "logprob_start_len": 3,
        "top_logprobs_num": 4,
        "return_text_in_logprobs": True,
        "json_schema": "{}",
    }

    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen("y", max_tokens=5, **asked)

    program.run(backend=fake)
    said = fake.calls[0][1].said()
    assert said["max_new_tokens"] == 5 and said["min_new_tokens"] == 2
    for name, value in asked.items():
        if name != "min_tokens":
            assert said[name] == (tuple(value) if isinstance(value, list) else value)


def test_roles_make_messages(fake: FakeBackend) -> None:
    state = chat.run("Hi", second="Why?", backend=fake)
    assert state.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " 6 words"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Well, 12 words"},
    ]
    assert fake.prompts[1].endswith("user: Why?\nassistant: Well,")


def test_begin_and_end_are_the_same_as_roles(fake: FakeBackend) -> None:
    @sgl.function
    def begun(s: Any) -> None:
        s += sgl.system_begin() + "Be brief." + sgl.system_end()
        s += sgl.user_begin()
        s += "Hi"
        s += sgl.user_end() + sgl.assistant_begin() + sgl.gen("one")
        s += sgl.assistant_end()

    @sgl.function
    def whole(s: Any) -> None:
        s += sgl.system("Be brief.") + sgl.user("Hi") + sgl.assistant(sgl.gen("one"))

    assert begun.run(backend=fake).messages() == whole.run(backend=fake).messages()


def test_a_program_may_branch_on_its_variables(fake: FakeBackend) -> None:
    """ReAct: the model chooses what to do next, and the program does it."""

    @sgl.function
    def agent(s: Any) -> None:
        for step in range(1, 4):
            s += f"Thought {step}:" + sgl.gen("thought") + "\n"
            s += f"Action {step}: " + sgl.select(f"action_{step}", ["Search", "Finish"])
            if s[f"action_{step}"] == "Finish" and step > 1:
                s += f" after{s['thought']}"
                break

    state = agent.run(backend=fake)
    assert state["action_2"] == "Finish"
    assert state.text() == (
        "Thought 1: 2 words\nAction 1: FinishThought 2: 8 words\nAction 2: Finish after 8 words"
    )


def test_a_variable_that_is_generated_again_is_waited_for(fake: FakeBackend) -> None:
    seen = []

    @sgl.function
    def program(s: Any) -> None:
        for _ in range(3):
            s += "a b" + sgl.gen("x")
            seen.append(s["x"])

    program.run(backend=fake)
    assert seen == [" 2 words", " 5 words", " 8 words"]


def test_n_samples_are_a_list_and_the_first_goes_on(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "say" + sgl.gen("x", n=3) + "."

    state = program.run(backend=fake)
    assert state["x"] == [" 1 words", " 1 words!", " 1 words!!"]
    assert [meta["sample"] for meta in state.get_meta_info("x")] == [0, 1, 2]
    assert state.text() == "say 1 words."


def test_a_scope_is_the_text_inside(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "JSON: "
        with s.var_scope("object"):
            s += '{"n":' + sgl.gen() + "}"
        s += "." + s["object"]
        s.set_var("mine", 3)
        s["other"] = s["mine"] + 1

    state = program.run(backend=fake)
    assert state["object"] == '{"n": 2 words}'
    assert state.text().endswith('.{"n": 2 words}')
    assert (state["mine"], state["other"]) == (3, 4)


def test_types_restrict_what_is_written(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a" + sgl.gen_int("i") + sgl.gen("f", dtype=float, stop="x")
        s += sgl.gen_string("s", 9) + sgl.gen("b", dtype="bool") + sgl.gen("r", regex="[a-z]+")

    program.run(backend=fake)
    integer, real, text, boolean, pattern = (sampling for _, sampling in fake.calls)
    assert (integer.regex, integer.stop) == (REGEX_INT, (" ", "\n"))
    assert (real.regex, real.stop) == (REGEX_FLOAT, ("x", " ", "\n"))
    assert (text.stop, text.max_new_tokens) == (None, 9)
    assert boolean.regex == "(True|False)"
    assert pattern.regex == "[a-z]+"


def test_gen_with_choices_is_a_select(fake: FakeBackend) -> None:
    choice = sgl.gen("x", choices=["b", "a"], choices_method=sgl.greedy_token_selection)
    assert choice == sgl.select("x", ["b", "a"], choices_method=sgl.greedy_token_selection)

    @sgl.function
    def program(s: Any) -> None:
        s += "pick " + choice

    state = program.run(backend=fake)
    assert state["x"] == "a"
    assert state.get_meta_info("x")["choices_method"] == "greedy_token_selection"


def test_bind_fixes_arguments(fake: FakeBackend) -> None:
    bound = few_shot.bind(question="Who?")
    assert "Q: Who?" in bound.run(backend=fake).text()
    assert "Q: Why?" in bound(question="Why?", backend=fake).text()
    with pytest.raises(ProgramError, match=r"few_shot\(\) has no argument 'quest'"):
        few_shot.bind(quest=1)


@pytest.fixture
def default(fake: FakeBackend) -> Iterator[FakeBackend]:
    sgl.set_default_backend(fake)
    yield fake
    sgl.set_default_backend(None)


def test_the_default_backend(default: FakeBackend) -> None:
    assert few_shot.run("Why?")["answer"] == " 6 words"
    assert sgl.get_server_info() == {"model": "fake"}
    few_shot.cache()
    sgl.flush_cache()
    assert default.prefilled == []


def test_without_a_backend_there_is_an_error() -> None:
    with pytest.raises(ProgramError, match="there is no backend"):
        few_shot.run("Why?")
    with pytest.raises(ProgramError, match="str is no backend"):
        few_shot.run("Why?", backend="smollm2")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: sgl.gen("x", dtype=list), "dtype is .*list.*, must be one of int, float"),
        (lambda: sgl.gen("x", dtype=int, regex="a"), "dtype and regex exclude each other"),
        (lambda: sgl.select("x", []), r"select\('x'\): choices is \[\]"),
        (lambda: sgl.select("x", ["a", ""]), "not empty"),
        (lambda: sgl.select("x", "ab"), "list of texts"),
        (lambda: sgl.gen("x", choices=["a"], temperature=0.7), "temperature is 0.7"),
        (
            lambda: sgl.user("a") + 3,  # type: ignore[operator]
            r"not int \(3\)",
        ),
    ],
)
def test_wrong_expressions_are_refused(part: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        part()


def test_roles_must_nest(fake: FakeBackend) -> None:
    def run(*parts: Any) -> None:
        @sgl.function
        def program(s: Any) -> None:
            for part in parts:
                s += part

        program.run(backend=fake).messages()

    with pytest.raises(ProgramError, match="user begins before system has ended"):
        run(sgl.system_begin(), sgl.user("x"))
    with pytest.raises(ProgramError, match="user ends, but the open role is None"):
        run(sgl.user_end())
    with pytest.raises(ProgramError, match="'between' is between two messages"):
        run(sgl.user("a"), "between", sgl.user("b"))


def test_images_stay_in_the_program(fake: FakeBackend) -> None:
    @sgl.function
    def look(s: Any) -> None:
        s += sgl.user(sgl.image("http://x/a.png") + "What is this?") + sgl.assistant(sgl.gen("x"))

    first = look.run(backend=fake).messages()[0]
    assert first["content"] == [
        {"type": "image_url", "image_url": {"url": "http://x/a.png"}},
        {"type": "text", "text": "What is this?"},
    ]
