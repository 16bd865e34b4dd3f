"""Free text in which certain texts begin parts that must be completed: as a Lark grammar.

The format is SGLang's: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}, and two
switches of ours, "at_least_one" and "stop_after_first".
"""

import json
from collections.abc import Mapping
from typing import Any

from inferplane.grammar.contract import refusal
from inferplane.grammar.schema.lower import lower

KEYS = {"type", "structures", "triggers", "at_least_one", "stop_after_first"}
MAX_STRUCTURES = 256


def lark_of(text: str, special: Mapping[str, int], options: Mapping[str, Any]) -> str:
    """`special`: texts of tokens that stand for no text; `options` for JSON, see compile."""
    spec = parse_tags(text)
    rules: list[str] = []
    tags: list[str] = []
    leading: list[str] = []
    for number, trigger in enumerate(spec["triggers"]):
        bodies = []
        for tag in spec["structures"]:
            if not tag["begin"].startswith(trigger):
                continue
            schema = {**lower(tag["schema"]), "x-guidance": dict(options)}
            rest = _literal(tag["begin"].removeprefix(trigger), special)
            body = f"%json {json.dumps(schema)}"
            bodies.append(" ".join(filter(None, [rest, body, _literal(tag["end"], special)])))
        begin = _literal(trigger, special)
        rules.append(f"body_{number}: " + " | ".join(bodies))
        leading.append(f"{begin} body_{number}")
        if begin.startswith("<["):
            tags.append(f"FREE {begin} body_{number}")
        else:  # lazy: the first occurrence of the trigger ends the free text
            rules.append(f"trigger_{number}[lazy]: FREE {begin}")
            tags.append(f"trigger_{number} body_{number}")
    first, tag = " | ".join(leading), " | ".join(tags)
    many = not spec["stop_after_first"]
    if spec["at_least_one"]:
        start = f"({first})+" if many else f"({first})"
    else:
        start = f"({tag})* FREE" if many else f"({tag}) | FREE"
    return "\n".join(["%llguidance {}", f"start: {start}", r"FREE: /(.|\n)*/", *rules])


def parse_tags(text: str) -> dict[str, Any]:
    """The format above, checked; both switches are there."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError):
        raise refusal("structural_tag", "is not valid JSON") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("structures"), list):
        raise refusal("structural_tag", "must be an object with 'structures' and 'triggers'")
    for key in spec.keys() - KEYS:
        raise refusal("structural_tag", f"has an unknown key {key[:64]!r}")
    triggers, structures = spec.get("triggers"), spec["structures"]
    strings = isinstance(triggers, list) and all(isinstance(t, str) and t for t in triggers)
    if not strings or not triggers or not structures or len(structures) > MAX_STRUCTURES:
        raise refusal(
            "structural_tag", f"needs triggers (texts) and 1 to {MAX_STRUCTURES} structures"
        )
    for index, tag in enumerate(structures):
        texts = isinstance(tag, dict) and tag.keys() == {"begin", "schema", "end"}
        if not texts or not isinstance(tag["begin"], str) or not isinstance(tag["end"], str):
            raise refusal("structural_tag", f"structure {index} needs begin, schema and end")
        if sum(tag["begin"].startswith(trigger) for trigger in triggers) != 1:
            raise refusal(
                "structural_tag", f"'begin' of structure {index} must start with one trigger"
            )
    for trigger in triggers:
        if not any(tag["begin"].startswith(trigger) for tag in structures):
            raise refusal("structural_tag", f"trigger {trigger[:64]!r} begins no structure")
    return {"at_least_one": False, "stop_after_first": False, **spec}


def _literal(text: str, special: Mapping[str, int]) -> str:
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
