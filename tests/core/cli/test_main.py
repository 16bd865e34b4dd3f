"""Exit codes, error output, and what each command imports."""

import subprocess
import sys

import pytest

from inferplane.cli.main import COMMANDS, main
from tests.core.cli.conftest import Run
from tests.rules.source import REPO


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert [name for name in COMMANDS if f"  {name} " not in shown] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("inferplane 0")


LIGHT = [["--help"], *([name, "--help"] for name in COMMANDS), ["plugins"]]


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_help_imports_no_torch(words: list[str], environment: dict[str, str]) -> None:
    code = f"""
import sys
from inferplane.cli.main import main
try:
    main({words!r})
except SystemExit as ended:
    assert ended.code == 0
sys.exit("torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "m", "--port", "99999"], "--port is 99999, must be from 0 to 65535"),
        (["generate", "/nowhere", "--prompt", "x"], "/nowhere"),
        (["generate", "m", "--file", "/nowhere"], "--file /nowhere cannot be read"),
        (["generate", "m", "--prompt", ""], "nothing to complete"),
        (["explain", "TINY", "--device", "nosuch"], "--device nosuch: backend package not"),
        (["explain", "TINY", "--device", "absent"], "Unavailable[no_hardware]: no such card"),
        (["explain", "TINY", "--device", "broken"], "a_package_that_nobody_has"),
        (["explain", "TINY", "--device", "plain", "--op", "x"], "--op x: write OP=IMPLEMENTATION"),
        (["explain", "TINY", "--device", "plain", "--op", "nosuch=x"], "no such op"),
        (["explain", "TINY", "--device", "plain", "--require-native"], "--require-native"),
        (["bench", "--concurrency", "0"], "--concurrency is 0, must be at least 1"),
        (["bench", "--input-len", "0"], "--input-len is 0, must be at least 1"),
        (["bench", "--shared-prefix", "200"], "--shared-prefix is 200, must be from 0 to"),
        (["bench", "--url", "ftp://x"], "URL ftp://x: write http://HOST:PORT"),
        (["chat", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
        (["chat", "--url", "x", "--api-key-file", "/nowhere"], "--api-key-file /nowhere cannot"),
    ],
)
def test_errors_are_one_clear_message(
    words: list[str],
    message: str,
    tiny_folder: object,
    backends: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(tiny_folder) if w == "TINY" else w for w in words]) == 1
    written = capsys.readouterr()
    assert written.err.startswith("inferplane: error: ")
    assert message in written.err
    assert "Traceback" not in written.err
    assert written.out == ""


def test_debug_shows_where_an_error_came_from(run: Run) -> None:
    plain = run("explain", "/nowhere")
    debug = run("explain", "/nowhere", "--log-level", "debug")
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert debug.stderr.splitlines()[-1] == plain.stderr.strip()


def test_a_reader_that_leaves_is_no_crash(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "inferplane", "plugins", "--json"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, b"")


def test_every_command_and_option_is_documented() -> None:
    text = (REPO / "docs/cli.md").read_text()
    from inferplane.cli.options import SAMPLING_HELP
    from inferplane.config import flag, settings
    from tests.core.cli.test_options import parser_of

    generated = {flag(name) for name in SAMPLING_HELP} | {flag(s.name) for s in settings()}
    for name in COMMANDS:
        assert f"## inferplane {name}" in text
        section = text.split(f"## inferplane {name}")[1].split("\n## ")[0]
        own = set(parser_of(name)._option_string_actions) - generated - {"-h", "--help"}
        assert sorted(o for o in own if f"`{o}" not in section) == []
    assert sorted(flag(name) for name in SAMPLING_HELP if f"`{flag(name)}" not in text) == []
