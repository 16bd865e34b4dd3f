"""Patterns and grammars of clients in the notation that llguidance reads."""

import json
from collections.abc import Mapping

from inferplane.grammar.contract import refusal


def plain_regex(pattern: str) -> str:
    """A pattern that the whole output matches, without the anchors that say so."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    return pattern


def lark_regex(pattern: str) -> str:
    """What goes between slashes."""
    pattern = plain_regex(pattern)
    if not pattern:
        return "(?:)"
    import llguidance

    text: str = llguidance.regex_to_lark(pattern.replace("\n", "\\n"), "")
    return text


def lark_grammar(text: str) -> str:
    """GBNF, which has `name ::= ...`, is translated; anything else is taken for Lark."""
    if "::=" not in text:
        return text
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    try:
        lark: str = gbnf_to_lark(text)
    except (GbnfToLarkError, RecursionError, ValueError) as error:
        raise refusal("ebnf", f"cannot be read: {error or type(error).__name__}"[:300]) from None
    return lark


def literals(text: str, special: Mapping[str, int]) -> str:
    """A text as terminals: special tokens by id, what is between them as strings."""
    parts = []
    while text:
        found = [(text.find(name), -len(name), name) for name in special if name and name in text]
        at, _, name = min(found, default=(len(text), 0, ""))
        if at:
            parts.append(json.dumps(text[:at]))
        if name:
            parts.append(f"<[{special[name]}]>")
        text = text[at + len(name) :]
    return " ".join(parts)
