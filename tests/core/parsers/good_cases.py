"""Well-formed answers of each family, by its published format."""

import json
from typing import Any

from inferplane.parsers.formats import HARMONY
from tests.core.parsers.cases import Case

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
