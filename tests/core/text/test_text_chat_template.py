"""Chat templates: the same text as transformers, and errors that fall on the request alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

from inferplane.errors import ModelError, RequestError
from inferplane.text import chat_template
from inferplane.text.chat_template import ChatTemplate
from inferplane.text.tokenizer import Tokenizer, load_folder
from tests.core.text.vocabularies import byte_level

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & 'kind'"},
    {"role": "user", "content": "Größe? {{ x }} {% if %}"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "n": 1.5}}]},
]
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "description": "<ü>", "parameters": {}}}
]

TEMPLATES = {
    "plain": "{% for m in messages %}\n  {{ m['role'] }}: {{ m.content }}\n{% endfor %}\nend",
    "blocks are trimmed": "  {% if messages %}\nyes\n  {% endif %}\nno  \n",
    "json": "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ messages[0] | tojson }}",
    "loop controls": (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
        "{% break %}{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "namespace": "{% set n = namespace(a=0) %}{% for m in messages %}{% set n.a = n.a + 1 %}"
    "{% endfor %}{{ n.a }}",
    "undefined": "{{ nothing }}|{% if documents is none %}none{% endif %}|{{ bos_token }}",
    "prompt": "{% if add_generation_prompt %}go{% endif %}{{ enable_thinking }}",
    "macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[1].content) }}",
    "strings": "{{ messages[1].content.split(' ')[0].upper() }}{{ 'a' ~ 1 }}{{ [1, 2][-1:] }}",
}


def render(source: str | dict[str, str], messages: Any = CHAT, **variables: Any) -> str:
    tools = variables.pop("tools", None)
    return ChatTemplate(source, "test").render(messages, tools, True, variables)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_same_text_as_transformers(name: str, tools: Any) -> None:
    variables = {"bos_token": "<s>", "enable_thinking": False}
    theirs = render_jinja_template(
        [CHAT],
        tools=tools,
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        **variables,
    )[0][0]
    assert render(TEMPLATES[name], tools=tools, **variables) == theirs


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_under_any_name(key: str) -> None:
    messages = [{"role": "assistant", "content": "a", key: "why"}]
    source = "{{ messages[0].reasoning_content }}/{{ messages[0].thinking }}"
    theirs = render_jinja_template([messages], chat_template=source)[0][0]
    assert render(source, messages) == theirs == "why/why"


def test_current_time_is_formatted() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


BAD = {
    "raised": ("{{ raise_exception('roles must alternate') }}", ": roles must alternate"),
    "undefined": ("{{ a.b.c }}", "'a' is undefined"),
    "type": ("{{ 1 + messages }}", "TypeError"),
    "zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "long loop": ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
    "sandbox": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "changes messages": ("{{ messages.append(1) }}", "unsafe|not safe"),
    "bad time": ("{{ strftime_now(5) }}", "TypeError"),
}


@pytest.mark.parametrize("name", BAD)
def test_failure_of_a_template_is_the_requests(name: str) -> None:
    source, message = BAD[name]
    with pytest.raises(RequestError, match=message) as caught:
        render(source)
    assert caught.value.param == "messages"
    assert caught.value.status == 400


def test_size_of_the_result_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDERED", 100)
    # Ten billion rounds: only stopping at the limit ends this test.
    loop = "{% for i in range(99999) %}"
    source = loop * 2 + "{{ messages[0].content }}" + "{% endfor %}" * 2
    with pytest.raises(RequestError, match="more than 100 characters"):
        render(source)
    assert render("x" * 100) == "x" * 100


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_arguments_cannot_replace_the_request(name: str) -> None:
    tokenizer = Tokenizer(byte_level(), eos_ids=[], chat_template=ChatTemplate("x", "test"))
    with pytest.raises(RequestError, match=f"{name!r} is set by the request") as caught:
        ChatTemplate("x", "test").render([], None, True, {name: 1})
    assert caught.value.param == "chat_template_kwargs"
    if name == "messages":
        with pytest.raises(RequestError, match="is set by the request"):
            tokenizer.render_chat([], **{name: 1})


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | no_such_filter }}", "{% for %}"])
def test_template_that_does_not_compile_is_the_models(source: str) -> None:
    with pytest.raises(ModelError, match=r"acme/m: chat template 'default', line 1: .*--chat-temp"):
        ChatTemplate(source, "acme/m")


def test_named_templates() -> None:
    named = {"default": "d", "tool_use": "t", "rag": "r"}
    assert render(named) == "d"
    assert render(named, tools=TOOLS) == "t"
    assert render(named, tools=[]) == "d"
    with pytest.raises(RequestError, match=r"\['rag'\] but none is the default"):
        render({"rag": "r"})


def folder(path: Path, **config: Any) -> Path:
    byte_level().save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_where_templates_are_found(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    assert not load_folder(folder(tmp_path), {}, {}).has_chat_template
    named = [{"name": "default", "template": "list"}, {"name": "tool_use", "template": "tools"}]
    found = load_folder(folder(tmp_path, chat_template=named), {}, {})
    assert found.render_chat(messages) == "list"
    assert found.render_chat(messages, tools=TOOLS) == "tools"
    found = load_folder(folder(tmp_path, chat_template="text"), {}, {})
    assert found.has_chat_template
    assert found.render_chat(messages) == "text"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert load_folder(tmp_path, {}, {}).render_chat(messages) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert load_folder(tmp_path, {}, {}).render_chat(messages) == "jinja"
    assert transformers.AutoTokenizer.from_pretrained(str(tmp_path)).chat_template == "jinja"
    assert load_folder(tmp_path, {}, {}, "given").render_chat(messages) == "given"


@pytest.mark.parametrize("value", [5, [{"name": "x"}], ["x"], {"a": 1}])
def test_templates_of_the_wrong_type(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match="chat_template"):
        load_folder(folder(tmp_path, chat_template=value), {}, {})


def test_model_without_template_says_so() -> None:
    tokenizer = Tokenizer(byte_level(), eos_ids=[])
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match="no chat template: use completions, or") as caught:
        tokenizer.encode_chat([{"role": "user", "content": "x"}])
    assert caught.value.code == "no_chat_template"


def test_rendered_prompt_gets_no_second_bos(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = byte_level()
    backend.add_special_tokens(["<s>"])
    bos = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    path = folder(
        tmp_path, bos_token="<s>", chat_template="{{ bos_token }}{{ messages[0].content }}"
    )
    backend.save(str(path / "tokenizer.json"))
    tokenizer = load_folder(path, {}, {})
    assert tokenizer.bos_id == bos
    assert tokenizer.encode_chat([{"role": "user", "content": "a"}]) == [bos, 0x61]
    assert tokenizer.encode("a") == [bos, 0x61]
    assert tokenizer.encode("a", add_special_tokens=False) == [0x61]
