"""What models of each family write, by their published formats, and what it means.

Special tokens are written by their names; `special` says which markers are special tokens.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from inferplane.parsers.events import Arguments, Call, Event, Parsed, Reasoning, Text
from inferplane.parsers.formats import FORCED, HARMONY, REASONING, TOOLS
from inferplane.parsers.machine import Machine
from inferplane.parsers.source import stand_ins

SCHEMAS = {
    "write": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "mode": {"enum": ["a", "w"]},
            "lines": {"type": "array"},
            "count": {"type": "integer"},
            "force": {"type": "boolean"},
        },
    }
}


@dataclass(frozen=True)
class Case:
    name: str
    tools: str | None
    text: str
    said: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    reasoning: str | None = None
    thought: str = ""
    special: tuple[str, ...] = ()
    inside: bool = False
    separate: bool = True
    ids: tuple[str, ...] = field(default=())

    def machine(self) -> Machine:
        tools = FORCED if self.tools == "forced" else TOOLS[self.tools] if self.tools else None
        return Machine(
            tools,
            REASONING[self.reasoning] if self.reasoning else None,
            special=stand_ins(self.special),
            schemas=SCHEMAS,
            in_reasoning=self.inside,
            separate=self.separate,
            new_id=lambda: "id",
        )

    def given(self) -> str:
        """The text as the machine gets it."""
        text = self.text
        for name, char in stand_ins(self.special).items():
            text = text.replace(name, char)
        return text

    def expected(self) -> Parsed:
        calls = []
        for i, (name, arguments) in enumerate(self.calls):
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            calls.append(Call(self.ids[i] if self.ids else "id", name, text))
        return Parsed(self.said, self.thought, calls)


def parse(case: Case, pieces: Iterable[str]) -> list[Event]:
    """All events, neighbours of a kind put together."""
    machine = case.machine()
    events: list[Event] = []
    for piece in pieces:
        events += machine.push(piece)
    events += machine.flush()
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        match last, event:
            case Text(a), Text(b):
                merged[-1] = Text(a + b)
            case Reasoning(a), Reasoning(b):
                merged[-1] = Reasoning(a + b)
            case Arguments(i, a), Arguments(j, b) if i == j:
                merged[-1] = Arguments(i, a + b)
            case _:
                merged.append(event)
    return merged


def together(events: list[Event]) -> Parsed:
    parsed = Parsed()
    parsed.add(events)
    return parsed


NESTED: dict[str, Any] = {
    "query": 'braces }{ and ] in "text", </tool_call> and \\ too',
    "emoji": "日本 🎉",
    "list": [1, -2.5e3, [True, None], {"a": {"b": {}}}],
}
RAW = json.dumps(NESTED, ensure_ascii=False)
HERMES = '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>'
PYTHON = ("<|python_tag|>",)
MISTRAL = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")
V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n%s\n```"
    "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>%s"
    "<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}"
    "<|tool_call_end|><|tool_calls_section_end|>"
)
GLM = (
    '<tool_call>write\n<arg_key>path</arg_key>\n<arg_value>a "b".txt</arg_value>\n'
    '<arg_key>lines</arg_key>\n<arg_value>[1, {"x": "</tool_call>"}]</arg_value>\n'
    "<arg_key>count</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
CODER = (
    "<tool_call>\n<function=write>\n<parameter=path>\n12\n</parameter>\n<parameter=mode>\nw\n"
    '</parameter>\n<parameter=lines>\n["<b>", 2]\n</parameter>\n<parameter=force>\nTrue\n'
    "</parameter>\n<parameter=other>\ntwo\nlines\n</parameter>\n</function>\n</tool_call>"
)
GEMMA = "<start_function_call>call:f{city:<escape>Köln, {x}<escape>,n:2}<end_function_call>"
GEMMA4 = '<|tool_call>call:f{s:<|"|>a "b"<|"|>,o:{k:[1.5,true,null]},w:Paris}<tool_call|>'
ANALYSIS = "<|channel|>analysis<|message|>Think <b>.<|end|><|start|>assistant"
HARMONY_CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"

GOOD: list[Case] = [
    Case("no call", "hermes", "Just text.\n", "Just text.\n"),
    Case("call", "hermes", HERMES % RAW, "", (("f", RAW),)),
    Case("two", "hermes", HERMES % RAW + "\n" + HERMES % "{}", "", (("f", RAW), ("f", "{}"))),
    Case("text around", "hermes", f"Hi. \n{HERMES % '{}'}\nBye.", "Hi.Bye.", (("f", "{}"),)),
    Case("less", "hermes", "a < b <tool> <tool_cal", "a < b <tool> <tool_cal"),
    Case("no arguments", "hermes", '<tool_call>{"name": "f"}</tool_call>', "", (("f", "{}"),)),
    Case("null", "hermes", HERMES % "null", "", (("f", "{}"),)),
    Case("as text", "hermes", HERMES % json.dumps(RAW), "", (("f", RAW),)),
    Case(
        "list",
        "hermes",
        '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
        "",
        (("f", "{}"),),
    ),
    Case(
        "arguments first",
        "hermes",
        f'<tool_call>{{"arguments": {RAW}, "name": "f"}}</tool_call>',
        "",
        (("f", RAW),),
    ),
    Case("llama3", "llama3", f'{{"name": "f", "parameters": {RAW}}}', "", (("f", RAW),)),
    Case(
        "llama3 several",
        "llama3",
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}; '
        '{"name": "g", "parameters": {}}',
        "",
        (("f", {"a": 1}), ("g", {})),
        special=PYTHON,
    ),
    Case("llama3 text", "llama3", "It is {not} a call.", "It is {not} a call."),
    Case("llama3 json", "llama3", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}'),
    Case(
        "pythonic",
        "pythonic",
        "[f(a=1, b='it\\'s \"x\"', c=[True, None, {'k': (1, 2)}], d=-0.5), g()]",
        "",
        (("f", {"a": 1, "b": 'it\'s "x"', "c": [True, None, {"k": [1, 2]}], "d": -0.5}), ("g", {})),
    ),
    Case(
        "pythonic escapes",
        "pythonic",
        '[f(s="\\u65e5\\n\\x41\\ud83c\\udf89")]',
        "",
        (("f", '{"s": "日\\nA🎉"}'),),
    ),
    Case(
        "llama4",
        "pythonic",
        '<|python_start|>[a.b(x="]")]<|python_end|>',
        "",
        (("a.b", {"x": "]"}),),
        special=("<|python_start|>", "<|python_end|>"),
    ),
    Case("pythonic text", "pythonic", "[1, 2] is a list", "[1, 2] is a list"),
    Case("pythonic link", "pythonic", "[docs](http://x) say", "[docs](http://x) say"),
    Case(
        "mistral list",
        "mistral",
        f'Sure.[TOOL_CALLS] [{{"name": "f", "arguments": {RAW}, "id": "abcdefghi"}},'
        ' {"name": "g", "arguments": {}}]',
        "Sure.",
        (("f", RAW), ("g", {})),
        special=MISTRAL,
    ),
    Case(
        "mistral names",
        "mistral",
        f"[TOOL_CALLS]f[ARGS]{RAW}[TOOL_CALLS]g[CALL_ID]abcDEF123[ARGS]{{}}",
        "",
        (("f", RAW), ("g", {})),
        special=MISTRAL,
        ids=("id", "abcDEF123"),
    ),
    Case(
        "mistral no args",
        "mistral",
        '[TOOL_CALLS]f{"a": 1}',
        "",
        (("f", {"a": 1}),),
        special=MISTRAL,
    ),
    Case(
        "magistral",
        "mistral",
        "[THINK]Hm.[/THINK]Hi.[TOOL_CALLS]f[ARGS]{}",
        "Hi.",
        (("f", {}),),
        reasoning="mistral",
        thought="Hm.",
        special=MISTRAL,
    ),
    Case("deepseek v3", "deepseek-v3", "Ok.\n" + V3 % RAW, "Ok.", (("f", RAW), ("g", {}))),
    Case("deepseek v3.1", "deepseek-v3.1", V31 % RAW, "", (("f", RAW), ("g", {}))),
    Case(
        "deepseek v3.1 thinks",
        "deepseek-v3.1",
        "Hm.\n</think>" + V31 % RAW,
        "",
        (("f", RAW), ("g", {})),
        reasoning="deepseek-r1",
        thought="Hm.",
        inside=True,
    ),
    Case(
        "kimi",
        "kimi-k2",
        KIMI % RAW,
        "",
        (("f", RAW), ("g", {})),
        ids=("functions.f:0", "functions.g:1"),
    ),
    Case(
        "kimi calls while it thinks",
        "kimi-k2",
        "<think>Hm." + KIMI % RAW,
        "",
        (("f", RAW), ("g", {})),
        reasoning="kimi-k2",
        thought="Hm.",
        ids=("functions.f:0", "functions.g:1"),
    ),
    Case(
        "glm",
        "glm-4.5",
        "Ok\n" + GLM,
        "Ok",
        (("write", '{"path": "a \\"b\\".txt", "lines": [1, {"x": "</tool_call>"}], "count": 3}'),),
    ),
    Case("glm no arguments", "glm-4.5", "<tool_call>now\n</tool_call>", "", (("now", {}),)),
    Case(
        "qwen3 coder",
        "qwen3-coder",
        CODER,
        "",
        (
            (
                "write",
                '{"path": "12", "mode": "w", "lines": ["<b>", 2], "force": true,'
                ' "other": "two\\nlines"}',
            ),
        ),
    ),
    Case(
        "qwen3 coder without its tag",
        "qwen3-coder",
        "<function=f>\n<parameter=a>\n1.5\n</parameter>\n</function>\n</tool_call>",
        "",
        (("f", {"a": 1.5}),),
    ),
    Case("gemma", "gemma", GEMMA + GEMMA, "", (("f", '{"city": "Köln, {x}", "n": 2}'),) * 2),
    Case(
        "gemma special",
        "gemma",
        GEMMA,
        "",
        (("f", '{"city": "Köln, {x}", "n": 2}'),),
        special=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    Case(
        "gemma 4",
        "gemma4",
        f"<|channel>thought\nHm.\n<channel|>{GEMMA4}",
        "",
        (("f", {"s": 'a "b"', "o": {"k": [1.5, True, None]}, "w": "Paris"}),),
        reasoning="gemma4",
        thought="Hm.",
        special=("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
    ),
    Case(
        "harmony call",
        "gpt-oss",
        f"{ANALYSIS}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
        f"{HARMONY_CALL}{RAW}<|call|>",
        "I look.",
        (("f", RAW),),
        reasoning="gpt-oss",
        thought="Think <b>.",
        special=HARMONY,
    ),
    Case(
        "harmony recipient first",
        "gpt-oss",
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}",
        "",
        (("f", {}),),
        reasoning="gpt-oss",
        special=HARMONY,
    ),
    Case(
        "harmony answer",
        None,
        f"{ANALYSIS}<|channel|>final<|message|>The answer.\n",
        "The answer.\n",
        reasoning="gpt-oss",
        thought="Think <b>.",
        special=HARMONY,
    ),
    Case("harmony spelled", None, "<|channel|>final<|message|>x", "x", reasoning="gpt-oss"),
    Case("harmony plain", None, "No header.", "No header.", reasoning="gpt-oss", special=HARMONY),
    Case(
        "harmony together",
        "gpt-oss",
        f"{ANALYSIS}<|channel|>final<|message|>x",
        "Think <b>.\n\nx",
        reasoning="gpt-oss",
        special=HARMONY,
        separate=False,
    ),
    Case(
        "r1",
        None,
        "<think>\nHm <b>.\n\n</think>\n\nSo.",
        "So.",
        reasoning="deepseek-r1",
        thought="Hm <b>.",
    ),
    Case(
        "opened", None, "Hm.\n</think>\n\nSo.", "So.", reasoning="qwen3", thought="Hm.", inside=True
    ),
    Case("thinking off", None, "So </think>.", "So </think>.", reasoning="qwen3"),
    Case("empty", None, "<think>\n\n</think>\n\nSo.", "So.", reasoning="qwen3"),
    Case(
        "only once",
        None,
        "<think>a</think>b<think>c</think>",
        "b<think>c</think>",
        reasoning="think",
        thought="a",
    ),
    Case("not first", None, "So <think>a</think>", "So <think>a</think>", reasoning="think"),
    Case("kimi vl", None, "◁think▷a◁/think▷b", "b", reasoning="kimi", thought="a"),
    Case(
        "unseparated",
        None,
        "\n<think>\na</think>\n\nb",
        "\n<think>\na</think>\n\nb",
        reasoning="qwen3",
        separate=False,
    ),
    Case(
        "qwen3",
        "hermes",
        f"<think>\nA <tool_call>?\n</think>\n\nNow.\n{HERMES % RAW}",
        "Now.",
        (("f", RAW),),
        reasoning="qwen3",
        thought="A <tool_call>?",
    ),
    Case(
        "forced",
        "forced",
        '{"name": "f", "parameters": {"a": 1}}\n{"name": "g", "parameters": {}}\n',
        "",
        (("f", {"a": 1}), ("g", {})),
    ),
]

BAD: list[Case] = [
    Case("garbage", "hermes", "<tool_call>garbage</tool_call>!", "<tool_call>garbage</tool_call>!"),
    Case("then good", "hermes", "<tool_call>x" + HERMES % "{}", "<tool_call>x", (("f", "{}"),)),
    Case("no name", "hermes", '<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>'),
    Case("odd name", "hermes", '<tool_call>{"name": "a b"', '<tool_call>{"name": "a b"'),
    Case("number as name", "hermes", '<tool_call>{"name": 1}', '<tool_call>{"name": 1}'),
    Case("cut name", "hermes", '<tool_call>{"name": "f', '<tool_call>{"name": "f'),
    Case("cut marker", "hermes", "a <tool_call", "a <tool_call"),
    Case(
        "cut arguments",
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "x',
        "",
        (("f", '{"a": "x'),),
    ),
    Case(
        "brackets left open",
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": [{"b": 1}</tool_call> So.',
        "So.",
        (("f", '{"a": [{"b": 1}]}'),),
    ),
    Case(
        "one bracket too few",
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>',
        "",
        (("f", '{"a": 1}'),),
    ),
    Case(
        "one bracket too many",
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}}}\n</tool_call>So.',
        "So.",
        (("f", '{"a": 1}'),),
    ),
    Case(
        "not closed", "hermes", f'<tool_call>{{"name": "f", "arguments": {RAW}}}', "", (("f", RAW),)
    ),
    Case("closer alone", "hermes", "a </tool_call> b", "a </tool_call> b"),
    Case(
        "half a pair",
        "hermes",
        HERMES % '"{\\"a\\": \\"\\ud83d!\\"}"',
        "",
        (("f", '{"a": "\ufffd!"}'),),
    ),
    Case(
        "deepseek without arguments",
        "deepseek-v3.1",
        "<｜tool▁call▁begin｜>f<｜tool▁call▁end｜>x",
        "<｜tool▁call▁begin｜>f<｜tool▁call▁end｜>x",
    ),
    Case(
        "kimi words",
        "kimi-k2",
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>oops<|tool_call_end|>",
        "",
        (("f", "oops"),),
        ids=("functions.f:0",),
    ),
    Case("mistral words", "mistral", "[TOOL_CALLS] I will not.", " I will not.", special=MISTRAL),
    Case("stray special", "llama3", "a<|python_tag|> b", "a b", special=PYTHON),
    Case(
        "special inside",
        "mistral",
        '[TOOL_CALLS]f[ARGS]{"a": "x[ARGS]y"}',
        "",
        (("f", {"a": "xy"}),),
        special=MISTRAL,
    ),
    Case("code", "llama3", "<|python_tag|>print(1)", "print(1)", special=PYTHON),
    Case(
        "glm no name",
        "glm-4.5",
        "<tool_call>two words</tool_call>",
        "<tool_call>two words</tool_call>",
    ),
    Case(
        "glm cut",
        "glm-4.5",
        "<tool_call>write\n<arg_key>path</arg_key><arg_value>a",
        "",
        (("write", '{"path": "a'),),
    ),
    Case(
        "coder not a call", "qwen3-coder", "<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>"
    ),
    Case("coder cut", "qwen3-coder", "<function=f>\n<parameter=a>\n1", "", (("f", '{"a": '),)),
    Case(
        "coder bad number",
        "qwen3-coder",
        "<function=write>\n<parameter=count>\n1x\n</parameter></function>",
        "",
        (("write", {"count": "1x"}),),
    ),
    Case("pythonic positional", "pythonic", "[f(1)]", "[f(1)]"),
    Case("pythonic cut", "pythonic", "[f(a=[1, 'x", "", (("f", '{"a": [1, "x'),)),
    Case("pythonic second is none", "pythonic", "[f(a=1), hello]", "hello]", (("f", {"a": 1}),)),
    Case("gemma words", "gemma4", "<|tool_call>hello", "<|tool_call>hello"),
    Case("gemma cut", "gemma4", '<|tool_call>call:f{a:<|"|>x', "", (("f", '{"a": "x'),)),
    Case(
        "harmony cut header",
        "gpt-oss",
        ANALYSIS + "<|channel|>comm",
        "",
        reasoning="gpt-oss",
        thought="Think <b>.",
        special=HARMONY,
    ),
    Case(
        "harmony python",
        "gpt-oss",
        "<|channel|>analysis to=python code<|message|>1+1<|call|>",
        "",
        reasoning="gpt-oss",
        thought="1+1",
        special=HARMONY,
    ),
    Case("never answers", None, "Hm.\n", "", reasoning="qwen3", thought="Hm.", inside=True),
]

CASES = GOOD + BAD
