"""Conversations: their commands, a pipe, a terminal, and a server at the other end."""

import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from inferplane.cli.conversation import COMMANDS, HELP, Conversation, Message
from inferplane.cli.main import main
from inferplane.errors import RequestError
from tests.core.cli.conftest import Run
from tests.core.cli.terminal import Terminal
from tests.core.offline.tiny_model import ALPHABET
from tests.core.server.live_server import live_server

DEVICE = ("--device", "plain", "--kv-cache-tokens", "4096")


class Parrot:
    """Says what it heard, letter by letter."""

    def __init__(self) -> None:
        self.heard: list[tuple[list[Message], dict[str, Any]]] = []
        self.stopped = 0

    def answer(self, messages: list[Message], params: dict[str, Any]) -> Generator[str, None, None]:
        self.heard.append((list(messages), dict(params)))
        if messages[-1]["content"] == "too long":
            raise RequestError("too long")
        try:
            yield from messages[-1]["content"]
        except GeneratorExit:
            self.stopped += 1
            raise


def say(conversation: Conversation, line: str) -> str:
    return "".join(conversation.say(line))


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def test_turns_are_remembered_until_reset() -> None:
    parrot = Parrot()
    conversation = Conversation(parrot, {})
    assert say(conversation, " one ") == "one\n"
    say(conversation, "two")
    assert parrot.heard[-1][0] == [
        turn("user", "one"),
        turn("assistant", "one"),
        turn("user", "two"),
    ]
    assert "forgotten" in say(conversation, "/reset")
    say(conversation, "three")
    assert parrot.heard[-1][0] == [turn("user", "three")]


def test_an_empty_line_asks_nothing() -> None:
    parrot = Parrot()
    assert say(Conversation(parrot, {}), "  \n") == ""
    assert parrot.heard == []


def test_the_system_prompt_comes_first() -> None:
    parrot = Parrot()
    conversation = Conversation(parrot, {}, system="be kind")
    say(conversation, "one")
    assert parrot.heard[-1][0] == [turn("system", "be kind"), turn("user", "one")]
    say(conversation, "/system be brief")
    say(conversation, "/reset")
    say(conversation, "two")
    assert parrot.heard[-1][0] == [turn("system", "be brief"), turn("user", "two")]
    say(conversation, "/system")
    say(conversation, "/reset")
    say(conversation, "three")
    assert parrot.heard[-1][0] == [turn("user", "three")]


def test_an_answer_that_is_stopped_stays_as_far_as_it_came() -> None:
    parrot = Parrot()
    conversation = Conversation(parrot, {})
    pieces = conversation.say("hello")
    assert next(pieces) + next(pieces) == "he"
    pieces.close()
    assert parrot.stopped == 1
    assert conversation.messages == [turn("user", "hello"), turn("assistant", "he")]


def test_a_refused_message_is_forgotten() -> None:
    conversation = Conversation(Parrot(), {})
    say(conversation, "hi")
    with pytest.raises(RequestError):
        say(conversation, "too long")
    assert conversation.messages == [turn("user", "hi"), turn("assistant", "hi")]


def test_set() -> None:
    parrot = Parrot()
    conversation = Conversation(parrot, {"seed": 3})
    assert say(conversation, "/set temperature 0.2") == "temperature is 0.2\n"
    assert say(conversation, "/set max-tokens 9") == "max_tokens is 9\n"
    assert say(conversation, "/set stop END") == 'stop is ["END"]\n'
    assert say(conversation, "/set ignore_eos true") == "ignore_eos is true\n"
    assert "seed 3\ntemperature 0.2" in say(conversation, "/set")
    say(conversation, "/set seed")
    say(conversation, "hi")
    expected = {"temperature": 0.2, "max_tokens": 9, "stop": ["END"], "ignore_eos": True}
    assert parrot.heard[-1][1] == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temprature 1", "did you mean temperature?"),
        ("/set temperature hot", "temperature"),
        ("/set top_p 3", "top_p is 3.0, outside (0.0, 1.0]"),
        ("/hepl", "there is no command /hepl: did you mean /help?"),
    ],
)
def test_mistakes_change_nothing(line: str, message: str) -> None:
    conversation = Conversation(Parrot(), {"seed": 3})
    assert message in say(conversation, line)
    assert conversation.params == {"seed": 3}
    assert conversation.messages == []


def test_help_names_every_command() -> None:
    assert say(Conversation(Parrot(), {}), "/help") == HELP + "\n"
    assert [name for name in COMMANDS if name not in HELP] == []


def test_exit() -> None:
    conversation = Conversation(Parrot(), {})
    say(conversation, "/exit")
    assert conversation.ended


def test_lines_from_a_pipe(run: Run, tiny_folder: Path) -> None:
    lines = "hello\n/set max_tokens 3\nagain\n/set max_tokens 99999\nthird\n/exit\nnever\n"
    done = run("chat", str(tiny_folder), *DEVICE, input=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        ALPHABET,
        "max_tokens is 3",
        "abc",
        "max_tokens is 99999",
        "bye",
    ]
    assert "error: This model's maximum context length is 4096" in done.stderr


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "inferplane", "chat", str(folder), *DEVICE, *words]


def test_ctrl_c_stops_the_answer_and_leaves_at_the_prompt(
    tiny_folder: Path, environment: dict[str, str]
) -> None:
    terminal = Terminal(command(tiny_folder, "--ignore-eos"), environment)
    terminal.wait_for("say something, or /help")
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("xyz")  # and so on, without end
    terminal.type("\x03")
    terminal.wait_for("[stopped]")
    terminal.wait_for("> ")
    terminal.type("/set ignore_eos\n")
    terminal.wait_for("ignore_eos is no longer set")
    terminal.wait_for("> ")
    terminal.type("once more\n")
    terminal.wait_for(ALPHABET)
    terminal.wait_for("> ")
    assert terminal.interrupt() == 0


def test_the_end_of_input_and_sigterm_leave(tiny_folder: Path, environment: dict[str, str]) -> None:
    terminal = Terminal(command(tiny_folder), environment)
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    terminal = Terminal(command(tiny_folder, "--ignore-eos"), environment)
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("xyz")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.close() == 0


def test_a_server_at_the_other_end(run: Run) -> None:
    with live_server() as server:
        done = run("chat", "--url", server.url + "/v1", input="count\nemoji\n")
        assert (done.returncode, done.stderr) == (0, "")
        first, _ = done.stdout.splitlines()
        assert first == "one two three four"
        prompts = [bytes(x for x in s.prompt if x < 256).decode() for s in server.core.submitted]
        assert prompts == [
            "user: count\nassistant:",
            "user: count\nassistant: one two three four\nuser: emoji\nassistant:",
        ]


def test_the_key_is_sent(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("secret\n")
    with live_server(key="secret") as server:
        words = ["chat", "--url", server.url]
        done = run(*words, "--api-key-file", str(tmp_path / "key"), input="count\n")
        assert done.stdout == "one two three four\n"
        refused = run(*words, input="count\n")
        assert refused.returncode == 1
        assert "answered 401: Missing or wrong API key" in refused.stderr
    monkeypatch.setenv("INFERPLANE_API_KEY", "other")
    with live_server(key="secret") as server:
        assert main(["chat", "--url", server.url]) == 1
    assert "401" in capsys.readouterr().err
