"""Which formats a model speaks, and formats of other packages."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from inferplane.errors import ConfigError, PluginError
from inferplane.parsers import choose as module
from inferplane.parsers.choose import choose
from inferplane.parsers.events import Arguments, Plain, ToolCall
from inferplane.parsers.formats import FORCED, REASONING, TOOLS, ReasoningFormat, ToolFormat
from inferplane.parsers.machine import Machine
from tests.rules.source import REPO
from tests.rules.test_documented import load

TEMPLATES = {
    "qwen3": (
        '<|im_start|>system\n# Tools ... <tool_call>\n{"name": <function-name>}\n</tool_call>'
        "{%- if '</think>' in content %}<think>\n\n</think>",
        ("hermes", "qwen3"),
    ),
    "qwen2.5": ('<|im_start|> <tool_call>\n{"name": ...}\n</tool_call>', ("hermes", "none")),
    "qwen3-coder": (
        "<|im_start|><tool_call>\n<function=example>\n<parameter=p>",
        ("qwen3-coder", "none"),
    ),
    "llama 3.1": ("<|start_header_id|> ipython <|python_tag|>", ("llama3", "none")),
    "llama 3.2": (
        '<|start_header_id|>{{- \'Respond in the format {"name": function name, "parameters": '
        "dictionary of argument name and its value}.' }}",
        ("llama3", "none"),
    ),
    "llama 4": (
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(p)]",
        ("pythonic", "none"),
    ),
    "mistral": ("[INST] [AVAILABLE_TOOLS] [TOOL_CALLS]", ("mistral", "none")),
    "magistral": ("[SYSTEM_PROMPT] [TOOL_CALLS] [THINK]", ("mistral", "mistral")),
    "deepseek v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + type + '<｜tool▁sep｜>' + '```json'"
        "<｜Assistant｜> <｜end▁of▁sentence｜>",
        ("deepseek-v3", "none"),
    ),
    "deepseek r1": (
        "<｜tool▁call▁begin｜> ```json <｜Assistant｜><think>\n </think> <｜end▁of▁sentence｜>",
        ("deepseek-v3", "deepseek-r1"),
    ),
    "deepseek v3.1": (
        "<｜tool▁call▁begin｜> <｜Assistant｜> <think> </think> <｜end▁of▁sentence｜>",
        ("deepseek-v3.1", "deepseek-r1"),
    ),
    "kimi k2": ("<|tool_calls_section_begin|> <|tool_call_begin|>", ("kimi-k2", "none")),
    "kimi k2 thinking": (
        "<|tool_calls_section_begin|> <|tool_call_begin|> <think></think>",
        ("kimi-k2", "kimi-k2"),
    ),
    "glm": (
        "<|assistant|> <think></think> <tool_call> <arg_key> <arg_value>",
        ("glm-4.5", "glm-4.5"),
    ),
    "gpt-oss": ("<|start|>assistant<|channel|>analysis<|message|>", ("gpt-oss", "gpt-oss")),
    "functiongemma": ("<start_function_call>call:", ("gemma", "none")),
    "gemma 4": (
        "<|tool_call>call: <tool_call|> <|channel>thought <channel|>",
        ("gemma4", "gemma4"),
    ),
    "other tags": ("<think></think>", ("none", "think")),
    "kimi vl": ("◁think▷", ("none", "kimi")),
    "plain": ("{{ messages }}", ("none", "none")),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_auto(name: str) -> None:
    template, expected = TEMPLATES[name]
    chosen = choose("auto", "auto", template)
    assert (chosen.tools_name, chosen.reasoning_name) == expected
    assert chosen.tools is TOOLS.get(expected[0])
    assert chosen.reasoning is REASONING.get(expected[1])


def test_names_and_none() -> None:
    template = TEMPLATES["glm"][0]
    assert choose("none", "none", template) == module.Parsers()
    chosen = choose("mistral", "qwen3", template)
    assert (chosen.tools_name, chosen.reasoning_name) == ("mistral", "qwen3")
    for tools, reasoning, option in (
        ("hermez", "auto", "--tool-call-parser is 'hermez'"),
        ("auto", "qwen", "--reasoning-parser is 'qwen'"),
    ):
        with pytest.raises(ConfigError, match=option):
            choose(tools, reasoning, "")


def test_tags() -> None:
    chosen = choose("none", "<why>...</why>", "")
    assert chosen.reasoning == ReasoningFormat(opens="<why>", closes="</why>")
    for wrong in ("...", "<a>...", "...</a>", "<a>...<a>"):
        with pytest.raises(ConfigError, match="two different tags"):
            choose("none", wrong, "")


def test_markers_that_are_special_tokens() -> None:
    chosen = choose("mistral", "none", "", {5: "[TOOL_CALLS]", 6: "</s>", 7: "[ARGS]"})
    assert set(chosen.special) == {"[TOOL_CALLS]", "[ARGS]"}
    assert chosen.shown == {5: chosen.special["[TOOL_CALLS]"], 7: chosen.special["[ARGS]"]}
    make = chosen.parser(chosen.tools, in_reasoning=False, separate=True, schemas={})
    events = make().push(f"{chosen.shown[5]}f{chosen.shown[7]}{{")
    assert isinstance(events[0], ToolCall) and events[0].name == "f"
    assert chosen.parser(None, in_reasoning=False, separate=True, schemas={}) is Plain


def test_what_a_grammar_forces() -> None:
    for name, form in TOOLS.items():
        forced = choose(name, "none", "").forced()
        assert forced.writing == form.writing is not None
    assert choose("none", "none", "").forced().writing == FORCED.writing
    assert choose("qwen3-coder", "none", "").forced().shape != TOOLS["qwen3-coder"].shape


def test_where_reasoning_starts() -> None:
    chosen = choose("none", "gemma4", "")
    assert chosen.starts_inside("model\n<|channel>thought\n")
    assert not chosen.starts_inside("<|channel>thought\n<channel|>")
    assert not choose("none", "none", "").starts_inside("<think>")
    assert choose("none", "qwen3", "").starts_inside("assistant\n<think>\n")
    assert not choose("none", "qwen3", "").starts_inside("<think>\n\n</think>\n\n")
    assert not choose("none", "gpt-oss", "").starts_inside("<think>")


def test_every_format_is_documented(tmp_path: Path) -> None:
    text = (REPO / "docs/tools.md").read_text()
    assert [name for name in {*TOOLS, *REASONING} if f"| `{name}` |" not in text] == []
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "acme_parser.py").write_text(code)
    acme = load(tmp_path / "acme_parser.py")
    machine = Machine(acme.FORMAT, None, new_id=lambda: "id")
    events = machine.push('<acme:call>{"name": "f", "args": {"a": 1}}</acme:call>')
    assert events == [ToolCall(0, "id", "f"), Arguments(0, '{"a": 1}')]


TOOL = ToolFormat(opens=("<<",), closes=(">>",), signs=(("<<call",),))
THOUGHT = ReasoningFormat(opens="((", closes="))", signs=(("((",),))


def install(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Entry points `name` of another package, each with a value of the module that they name."""
    points = []
    for name, value in values.items():
        monkeypatch.setattr(module, f"test_{name}", value, raising=False)
        points.append(EntryPoint(name, f"{module.__name__}:test_{name}", module.GROUP))
    monkeypatch.setattr(module, "entry_points", lambda group: points)


def test_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, acme=(TOOL, THOUGHT), other=TOOL)
    chosen = choose("auto", "auto", "<<call (( <tool_call> <think></think>")
    assert (chosen.tools, chosen.reasoning) == (TOOL, THOUGHT)
    assert choose("other", "acme", "").tools is TOOL
    assert choose("auto", "auto", TEMPLATES["glm"][0]).tools_name == "glm-4.5"
    with pytest.raises(ConfigError, match="other"):
        choose("none", "other", "")  # it has no reasoning


@pytest.mark.parametrize("value", [3, (), (TOOL, "x")])
def test_plugins_that_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    install(monkeypatch, acme=value)
    assert choose("auto", "none", "<tool_call>").tools_name == "hermes"
    assert "parser acme is" in caplog.text
    with pytest.raises(PluginError, match="must be a ToolFormat"):
        choose("acme", "none", "")


def test_a_plugin_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("acme", "no_such_module_here:x", module.GROUP)]
    monkeypatch.setattr(module, "entry_points", lambda group: points)
    assert choose("auto", "auto", "<tool_call>").tools_name == "hermes"
    with pytest.raises(PluginError, match="parser acme: ModuleNotFoundError"):
        choose("acme", "none", "")
