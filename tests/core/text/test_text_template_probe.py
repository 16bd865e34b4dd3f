"""What chat templates can do, asked of templates in the manner of well-known ones."""

from typing import Any

import pytest

from inferplane.text.chat_template import ChatTemplate

LOOP = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
END = "{% endfor %}{% endfor %}{{ tools | tojson if tools }}"
ARGUMENTS = {
    "dict as json": (LOOP + "{{ c.function.arguments | tojson }}" + END, '{"a": "é"}'),
    "either": (
        LOOP + "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
        "{{ c.function.arguments | tojson }}{% endif %}" + END,
        '{"a": "é"}',
    ),
    "joined": (LOOP + "{{ '<' + c.function.arguments + '>' }}" + END, '<{"a": "é"}>'),
    "printed": (LOOP + "{{ c.function.arguments }}" + END, '{"a": "é"}'),
    "items": (
        LOOP + "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}" + END,
        "a=é",
    ),
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_in_the_form_that_the_template_wants(name: str) -> None:
    source, expected = ARGUMENTS[name]
    template = ChatTemplate(source, "test")
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert template.render(messages, None, True, {}) == expected
    assert template.shows_tools
    assert CALL["function"] == {"name": "f", "arguments": {"a": "é"}}


@pytest.mark.parametrize(
    ("source", "shows"),
    [
        ("{{ messages[0].content }}", False),
        ("{% if tools %}{{ raise_exception('no tools') }}{% endif %}", False),
        ("{% for t in tools or [] %}{{ t.function.name }}{% endfor %}", True),
        ({"default": "x", "tool_use": "{{ tools | tojson }}"}, True),  # type: ignore[dict-item]
    ],
)
def test_tools(source: Any, shows: bool) -> None:
    assert ChatTemplate(source, "test").shows_tools is shows


def test_variables_and_source() -> None:
    source = "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ effort }}"
    template = ChatTemplate({"default": source, "tool_use": "{{ tools }}"}, "test")
    assert {"thinking", "effort", "tools"} <= template.variables
    assert "{{ tools }}" in template.source and source in template.source
