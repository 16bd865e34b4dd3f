"""Malformed and truncated answers, and what becomes of them."""

from inferplane.parsers.formats import HARMONY
from tests.core.parsers.cases import Case
from tests.core.parsers.good_cases import ANALYSIS, GOOD, HERMES, MISTRAL, PYTHON, RAW

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
