"""The formats in which models write tool calls and reasoning, as tables.

Where a model family publishes its chat template or a description of its format, the table follows
it: Hermes and Qwen 2.5/3, Qwen3-Coder, Llama 3.1 to 4, Mistral (the list of v3 tokenizers, names
with [ARGS] since v11), DeepSeek V3/R1 and V3.1, Kimi K2, GLM 4.5, gpt-oss (harmony), FunctionGemma
and Gemma 4.
"""

from dataclasses import dataclass, field, replace

from inferplane.parsers.calls import FirstOf, JsonCalls, NamedCall, Shape
from inferplane.parsers.harmony import MARKERS as HARMONY
from inferplane.parsers.literals import Notation
from inferplane.parsers.writing import DIGITS, Pairs, Section, Writing
from inferplane.parsers.written_calls import BracedCall, PythonCalls, TaggedCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a model writes tool calls.

    A call begins at one of `opens`, or with one of the characters `bare` where an answer begins;
    its `shape` reads it; one of `closes` may end it. `drop` are further markers around calls,
    which say nothing. `signs` tells the format by a chat template: each entry is a set of texts
    that a template which teaches this format has all of. `short_ids`: call ids are 9 letters and
    digits. `channels`: the whole answer is in harmony's channels, and `shape` has no part in it.
    `writing` says how a grammar writes calls, so that it can hold a model to its own words; None
    where it cannot.
    """

    opens: tuple[str, ...] = ()
    shape: Shape = field(default_factory=JsonCalls)
    closes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    bare: str = ""
    signs: tuple[tuple[str, ...], ...] = ()
    short_ids: bool = False
    channels: bool = False
    writing: Writing | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Those that may be special tokens, which a parser must see."""
        return (*self.opens, *self.closes, *self.drop)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How a model marks its reasoning: between `opens` and `closes`, where its answer begins.
    `header` may follow `opens`. With `calls_end_it` a tool call ends the reasoning too. `signs`
    and `channels` as in ToolFormat."""

    opens: str = "<think>"
    closes: str = "</think>"
    header: str = ""
    calls_end_it: bool = False
    signs: tuple[tuple[str, ...], ...] = ()
    channels: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return HARMONY if self.channels else (self.opens, self.closes)


def kimi_name(text: str) -> tuple[str, str | None]:
    """functions.NAME:INDEX is the id by which the history must call it again."""
    name = text.removeprefix("functions.")
    head, colon, index = name.rpartition(":")
    return (head if colon and index.isdigit() else name), text


_SEPARATOR = "<｜tool▁sep｜>"
_DEEPSEEK = ToolFormat(
    opens=("<｜tool▁call▁begin｜>",),
    closes=("<｜tool▁call▁end｜>",),
    drop=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
_BEGINS = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
_DEEPSEEK_ENDS = ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
_HERMES = ("</tool_call>",)

TOOLS: dict[str, ToolFormat] = {
    "gpt-oss": ToolFormat(
        drop=HARMONY,
        channels=True,
        signs=(("<|channel|>", "<|message|>", "<|start|>"),),
        writing=Writing(
            calls=(("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>", ""),),
            triggers=("<|channel|>commentary to=",),
            blocks=(
                ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
                ("<|channel|>commentary<|message|>", "<|end|><|start|>assistant"),
            ),
            text="<|channel|>final<|message|>",
            excluded=HARMONY,
        ),
    ),
    "qwen3-coder": ToolFormat(
        opens=("<tool_call>", "<function="),
        closes=_HERMES,
        shape=TaggedCall(
            name_open="<function=",
            name_ends=(">",),
            key_open="<parameter=",
            key_end=">",
            value_open="",
            value_end="</parameter>",
            end="</function>",
            newlines=True,
        ),
        signs=(("<tool_call>", "<function=", "<parameter="),),
        writing=Writing(
            calls=(
                ("<tool_call>\n<function=NAME>\n", "</function>\n</tool_call>"),
                ("<function=NAME>\n", "</function>"),
            ),
            triggers=("<tool_call>", "<function="),
            pairs=Pairs(
                before="<parameter=KEY>\n",
                after="\n</parameter>\n",
                text=("", ""),
                never="</parameter>",
            ),
        ),
    ),
    "glm-4.5": ToolFormat(
        opens=("<tool_call>",),
        closes=_HERMES,
        shape=TaggedCall(
            name_open="",
            name_ends=("\n", "<arg_key>", "</tool_call>"),
            key_open="<arg_key>",
            key_end="</arg_key>",
            value_open="<arg_value>",
            value_end="</arg_value>",
            end="</tool_call>",
        ),
        signs=(("<tool_call>", "<arg_key>", "<arg_value>"),),
        writing=Writing(
            calls=(("<tool_call>NAME\n", "</tool_call>"),),
            triggers=("<tool_call>",),
            pairs=Pairs(
                before="<arg_key>KEY</arg_key>\n<arg_value>",
                after="</arg_value>\n",
                text=("", ""),
                never="</arg_value>",
            ),
        ),
    ),
    "kimi-k2": ToolFormat(
        opens=("<|tool_call_begin|>",),
        closes=("<|tool_call_end|>",),
        drop=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        shape=NamedCall(
            name_ends=("<|tool_call_argument_begin|>",),
            ends=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
            split=kimi_name,
        ),
        signs=(("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),),
        writing=Writing(
            calls=(
                (
                    f"<|tool_call_begin|>functions.NAME:{DIGITS}<|tool_call_argument_begin|>",
                    "<|tool_call_end|>",
                ),
            ),
            triggers=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
            sections=(
                Section(begin="<|tool_calls_section_begin|>", end="<|tool_calls_section_end|>"),
            ),
        ),
    ),
    "deepseek-v3": replace(
        _DEEPSEEK,
        shape=NamedCall(
            name_ends=("\n",),
            ends=_DEEPSEEK_ENDS,
            lead=("function" + _SEPARATOR,),
            fence=("```json",),
        ),
        writing=Writing(
            calls=(
                (
                    f"{_BEGINS[1]}function{_SEPARATOR}NAME\n```json\n",
                    f"\n```{_DEEPSEEK_ENDS[0]}",
                ),
            ),
            triggers=_BEGINS,
            sections=(Section(begin=_BEGINS[0], between="\n", end=_DEEPSEEK_ENDS[1]),),
        ),
        signs=(("<｜tool▁call▁begin｜>", "```json"),),
    ),
    "deepseek-v3.1": replace(
        _DEEPSEEK,
        shape=NamedCall(name_ends=(_SEPARATOR,), ends=_DEEPSEEK_ENDS),
        writing=Writing(
            calls=((f"{_BEGINS[1]}NAME{_SEPARATOR}", _DEEPSEEK_ENDS[0]),),
            triggers=_BEGINS,
            sections=(Section(begin=_BEGINS[0], end=_DEEPSEEK_ENDS[1]),),
        ),
        signs=(("<｜tool▁call▁begin｜>",),),
    ),
    "mistral": ToolFormat(
        opens=("[TOOL_CALLS]",),
        drop=("[ARGS]", "[CALL_ID]"),
        shape=FirstOf(
            JsonCalls(),
            NamedCall(name_ends=("[ARGS]", "{"), ends=("[TOOL_CALLS]",), extra=("[CALL_ID]",)),
        ),
        signs=(("[TOOL_CALLS]",),),
        short_ids=True,
        writing=Writing(
            calls=(("[TOOL_CALLS]NAME[ARGS]", ""),),
            triggers=("[TOOL_CALLS]",),
            sections=(
                Section(
                    begin="[TOOL_CALLS] [",
                    between=", ",
                    end="]",
                    call=('{"name": "NAME", "arguments": ', "}"),
                ),
            ),
        ),
    ),
    "gemma4": ToolFormat(
        opens=("<|tool_call>",),
        closes=("<tool_call|>",),
        drop=('<|"|>',),
        shape=BracedCall("call:", Notation(quotes='"', raw='<|"|>', ends=",}]", brackets="[{")),
        signs=(("<|tool_call>", "<tool_call|>"),),
        writing=Writing(
            calls=(("<|tool_call>call:NAME{", "}<tool_call|>"),),
            triggers=("<|tool_call>",),
            pairs=Pairs(before="KEY:", between=",", text=('<|"|>', '<|"|>'), never='<|"|>'),
        ),
    ),
    "gemma": ToolFormat(
        opens=("<start_function_call>",),
        closes=("<end_function_call>",),
        drop=("<escape>",),
        shape=BracedCall("call:", Notation(quotes='"', raw="<escape>", ends=",}]", brackets="[{")),
        signs=(("<start_function_call>",),),
        writing=Writing(
            calls=(("<start_function_call>call:NAME{", "}<end_function_call>"),),
            triggers=("<start_function_call>",),
            pairs=Pairs(
                before="KEY:", between=",", text=("<escape>", "<escape>"), never="<escape>"
            ),
        ),
    ),
    "pythonic": ToolFormat(
        opens=("<|python_start|>", "<|python_tag|>"),
        closes=("<|python_end|>",),
        bare="[",
        shape=PythonCalls(),
        signs=(("func_name1(params_name1=",), ("<|python_start|>",)),
        writing=Writing(
            calls=(("NAME(", ")"),),
            triggers=("<|python_start|>", "<|python_tag|>"),
            pairs=Pairs(before="KEY=", between=", "),
            sections=(
                Section(begin="[", between=", ", end="]"),
                Section(begin="<|python_start|>[", between=", ", end="]<|python_end|>"),
                Section(begin="<|python_tag|>[", between=", ", end="]"),
            ),
            lead="[",
        ),
    ),
    "llama3": ToolFormat(
        opens=("<|python_tag|>",),
        bare="{",
        shape=JsonCalls(separators=";", bare=True),
        signs=(
            ("<|python_tag|>",),
            ("<|start_header_id|>", '{"name": function name, "parameters":'),
        ),
        writing=Writing(
            calls=(('{"name": "NAME", "parameters": ', "}"),),
            triggers=("<|python_tag|>",),
            sections=(Section(between="; "), Section(begin="<|python_tag|>", between="; ")),
            lead="{",
        ),
    ),
    "hermes": ToolFormat(
        opens=("<tool_call>",),
        closes=_HERMES,
        shape=JsonCalls(stops=_HERMES),
        writing=Writing(
            calls=(('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>"),),
            triggers=("<tool_call>",),
        ),
        signs=(("<tool_call>",),),
    ),
}
"""`auto` takes the first whose signs a chat template has"""

FORCED = ToolFormat(
    bare="{",
    shape=JsonCalls(separators="\n", bare=True),
    writing=Writing(calls=(('{"name": "NAME", "parameters": ', "}\n"),), triggers=('{"name": ',)),
)
"""what a grammar makes of a model that must call, but whose own format it cannot write"""

REASONING: dict[str, ReasoningFormat] = {
    "gpt-oss": ReasoningFormat(channels=True, signs=(("<|channel|>", "<|message|>", "<|start|>"),)),
    "gemma4": ReasoningFormat(
        opens="<|channel>",
        closes="<channel|>",
        header="thought",
        signs=(("<|channel>", "<channel|>"),),
    ),
    "mistral": ReasoningFormat(opens="[THINK]", closes="[/THINK]", signs=(("[THINK]",),)),
    "kimi": ReasoningFormat(opens="◁think▷", closes="◁/think▷", signs=(("◁think▷",),)),
    "kimi-k2": ReasoningFormat(
        calls_end_it=True, signs=(("<think>", "<|tool_calls_section_begin|>"),)
    ),
    "deepseek-r1": ReasoningFormat(signs=(("</think>", "<｜Assistant｜>"),)),
    "glm-4.5": ReasoningFormat(signs=(("</think>", "<|assistant|>"),)),
    "qwen3": ReasoningFormat(signs=(("</think>", "<|im_start|>"),)),
    "think": ReasoningFormat(signs=(("<think>", "</think>"),)),
}
"""`auto` takes the first whose signs a chat template has"""
