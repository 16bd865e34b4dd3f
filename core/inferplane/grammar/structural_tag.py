"""Free text in which certain texts begin parts that must be completed: as a Lark grammar.

The format is SGLang's: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}, and what
else the ways in which models write tool calls need (all optional):

    at_least_one      the output begins with a structure and has no free text
    stop_after_first  it ends with the first structure
    sections          [{"begin", "between", "end", "structures"}]: several structures in a frame;
                      they are those of the output if it names none of its own
    lead              where the output begins with this text, one of the structures (or sections)
                      that begin with it and with no trigger must follow
    blocks            [[begin, end]]: free texts with these around them, as many as it likes, come
                      before all else
    text              what stands before the free text, which then has no triggers
    excluded          texts that no free text has
    pairs             of a structure, see arguments.py: its JSON object is written pair by pair

A NUL in a begin stands for a number.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inferplane.grammar.arguments import PAIRS, pair_rules
from inferplane.grammar.contract import refusal
from inferplane.grammar.lark import literals
from inferplane.grammar.schema.lower import lower
from inferplane.grammar.schema.negate import escape

PLAIN = {"type", "structures", "triggers", "at_least_one", "stop_after_first"}
MORE: dict[str, Any] = {"sections": [], "lead": "", "blocks": [], "text": "", "excluded": []}
MAX_STRUCTURES = 256
DIGITS = "\0"
SPACES = r"/[ \n]{1,4}/"


def lark_of(text: str, special: Mapping[str, int], options: Mapping[str, Any]) -> str:
    """`special`: texts of tokens that stand for no text; `options` for JSON, see compile."""
    return _Tags(parse_tags(text), special, options).lark()


class _Tags:
    """The grammar of one such format. A rule rest_N is structure N without its trigger."""

    def __init__(
        self, spec: dict[str, Any], special: Mapping[str, int], options: Mapping[str, Any]
    ) -> None:
        self._spec = spec
        self._special = special
        self._options = dict(options)
        self._rules: list[str] = []
        self._count = 0
        self._bodies: dict[str, list[str]] = {trigger: [] for trigger in spec["triggers"]}
        self._lead: list[str] = []

    def lark(self) -> str:
        spec = self._spec
        known = [self._structure(tag) for tag in spec["structures"]]
        for tag, (trigger, rest) in zip(spec["structures"], known, strict=True):
            if trigger or not spec["sections"]:
                self._place(tag["begin"], trigger, rest)
        for section in spec["sections"]:
            self._section(section, known)
        triggered = [self._triggered(*item) for item in enumerate(self._bodies.items())]
        first = [f"{begin} body_{number}".strip() for number, (begin, _) in enumerate(triggered)]
        first += self._lead
        tags = [tag for _, tag in triggered]
        many = not spec["stop_after_first"]
        lead = f"SPACES? ({' | '.join(self._lead)})" if self._lead else ""
        if spec["at_least_one"]:
            start = f"({' | '.join(first)})" + "+" * (many and not lead and not spec["text"])
        elif lead:  # what does not begin so is text, in which triggers begin others
            others = [tag.replace("FREE", "OTHER").replace("free_", "other_") for tag in tags]
            start = " | ".join([lead, *(f"{other} FREE" for other in others), "OTHER"])
        elif spec["text"]:
            start = " | ".join([*first, f"{self._literal(spec['text'])} FREE".strip()])
        else:
            joined = " | ".join(tags)
            start = f"({joined})* FREE" if many else f"({joined}) | FREE"
        if spec["blocks"]:
            start = f"block* ({start})"
            self._rules.append("block: " + " | ".join(map(self._block, spec["blocks"])))
        return "\n".join(["%llguidance {}", f"start: {start}", *self._terminals(), *self._rules])

    def _terminals(self) -> list[str]:
        """FREE has no trigger in it; OTHER does not begin with the lead either."""
        spec = self._spec
        triggers = [] if spec["text"] else spec["triggers"]  # where no text comes before them
        texts = [t for t in (*triggers, *spec["excluded"]) if not self._is_special(t)]
        free = "/(?s:.*)/"
        if texts:
            free += f" & ~/(?s:.*)({'|'.join(map(escape, texts))})(?s:.*)/"
        if not spec["lead"]:
            return [f"FREE: {free}"]
        lead = escape(spec["lead"][0])
        other = rf"FREE & ~/[ \t\r\n]*{lead}(?s:.*)/"
        return [f"FREE: {free}", f"OTHER: {other}", f"SPACES: {SPACES}"]

    def _is_special(self, text: str) -> bool:
        return self._literal(text).startswith("<[")

    def _literal(self, text: str) -> str:
        parts = text.split(DIGITS)
        return " /[0-9]{1,3}/ ".join(literals(part, self._special) for part in parts)

    def _structure(self, tag: dict[str, Any]) -> tuple[str, str]:
        """(its trigger or "", the name of its rule)"""
        number, self._count = self._count, self._count + 1
        triggers = [t for t in self._spec["triggers"] if tag["begin"].startswith(t)]
        trigger = triggers[0] if triggers else ""
        if "pairs" in tag:
            body, rules = pair_rules(f"args_{number}", tag, self._special, self._options)
            self._rules += rules
        else:
            schema = {**lower(tag["schema"]), "x-guidance": self._options}
            body = f"%json {json.dumps(schema)}"
        parts = [self._literal(tag["begin"].removeprefix(trigger)), body]
        rest = " ".join(filter(None, [*parts, self._literal(tag["end"])]))
        self._rules.append(f"rest_{number}: {rest}")
        return trigger, f"rest_{number}"

    def _place(self, begin: str, trigger: str, rest: str) -> None:
        """Where the structure or section can stand."""
        if trigger:
            self._bodies[trigger].append(rest)
        elif self._spec["lead"] and begin.startswith(self._spec["lead"]):
            self._lead.append(rest)

    def _section(self, section: dict[str, Any], known: Sequence[tuple[str, str]]) -> None:
        own = [self._structure(tag) for tag in section.get("structures", [])]
        members = [f"{self._literal(trigger)} {rest}".strip() for trigger, rest in own or known]
        number, self._count = self._count, self._count + 1
        self._rules.append(f"member_{number}: " + " | ".join(members))
        triggers = [t for t in self._spec["triggers"] if section["begin"].startswith(t)]
        trigger = triggers[0] if triggers else ""
        inside = f"member_{number}"
        if not self._spec["stop_after_first"]:
            inside += f" ({self._literal(section['between'])} member_{number})*"
        begin = self._literal(section["begin"].removeprefix(trigger))
        rest = " ".join(filter(None, [begin, inside, self._literal(section["end"])]))
        self._rules.append(f"rest_{number}: {rest}")
        first = (section.get("structures") or self._spec["structures"])[0]["begin"]
        self._place(section["begin"] + first, trigger, f"rest_{number}")

    def _triggered(self, number: int, item: tuple[str, list[str]]) -> tuple[str, str]:
        """(the trigger, what brings it in after free text)"""
        trigger, bodies = item
        self._rules.append(f"body_{number}: " + " | ".join(bodies))
        begin = self._literal(trigger)
        if begin.startswith("<["):
            return begin, f"FREE {begin} body_{number}"
        # lazy: the first occurrence of the trigger ends the free text
        self._rules.append(f"free_{number}[lazy]: FREE {begin}")
        if self._spec["lead"]:
            self._rules.append(f"other_{number}[lazy]: OTHER {begin}")
        return begin, f"free_{number} body_{number}"

    def _block(self, block: Sequence[str]) -> str:
        begin, end = self._literal(block[0]), self._literal(block[1])
        if end.startswith("<["):
            return f"{begin} FREE {end}"
        self._rules.append(f"text_{self._count}[lazy]: FREE {end}")
        self._count += 1
        return f"{begin} text_{self._count - 1}"


def parse_tags(text: str) -> dict[str, Any]:
    """The format above, checked; all of it is there."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError):
        raise refusal("structural_tag", "is not valid JSON") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("structures"), list):
        raise refusal("structural_tag", "must be an object with 'structures' and 'triggers'")
    for key in spec.keys() - PLAIN - MORE.keys():
        raise refusal("structural_tag", f"has an unknown key {key[:64]!r}")
    structures = spec["structures"]
    triggers: list[str] = spec.get("triggers") or []
    strings = bool(triggers) and _texts(triggers) and all(triggers)
    if not strings or not structures or len(structures) > MAX_STRUCTURES:
        raise refusal(
            "structural_tag", f"needs triggers (texts) and 1 to {MAX_STRUCTURES} structures"
        )
    spec = {"at_least_one": False, "stop_after_first": False, **MORE, **spec}
    _check_more(spec)
    begins: list[str] = []
    for index, tag in enumerate(structures):
        _check_structure(f"structure {index}", tag)
        begins.append(tag["begin"])
    for index, section in enumerate(spec["sections"]):
        begins.append(_check_section(f"section {index}", section, structures))
    lead = spec["lead"]
    for index, begin in enumerate(begins):
        count = sum(begin.startswith(trigger) for trigger in triggers)
        leads = bool(lead) and begin.startswith(lead)
        in_sections = index < len(structures) and bool(spec["sections"])
        if count != 1 and (count or not (leads or in_sections)):
            raise refusal(
                "structural_tag", f"'begin' of structure {index} must start with one trigger"
            )
    for trigger in triggers:
        if not any(begin.startswith(trigger) for begin in begins):
            raise refusal("structural_tag", f"trigger {trigger[:64]!r} begins no structure")
    return spec


def plain(spec: Mapping[str, Any]) -> bool:
    """Whether it is SGLang's format with no more than the two switches."""
    more = any(spec[key] for key in MORE)
    return not more and not any("pairs" in tag for tag in spec["structures"])


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_more(spec: dict[str, Any]) -> None:
    blocks = spec["blocks"]
    good = (
        isinstance(spec["lead"], str)
        and isinstance(spec["text"], str)
        and _texts(spec["excluded"])
        and isinstance(spec["sections"], list)
        and isinstance(blocks, list)
        and all(_texts(b) and len(b) == 2 and all(b) for b in blocks)
    )
    if not good or len(spec["sections"]) + len(blocks) + len(spec["excluded"]) > MAX_STRUCTURES:
        raise refusal("structural_tag", f"has a wrong value for one of {', '.join(MORE)}")


def _check_structure(where: str, tag: Any) -> None:
    texts = isinstance(tag, dict) and tag.keys() - {"pairs"} == {"begin", "schema", "end"}
    if not texts or not isinstance(tag["begin"], str) or not isinstance(tag["end"], str):
        raise refusal("structural_tag", f"{where} needs begin, schema and end")
    pairs = tag.get("pairs", {name: kind() for name, kind in PAIRS.items()})
    if not isinstance(pairs, dict) or pairs.keys() != PAIRS.keys():
        raise refusal("structural_tag", f"pairs of {where} need {', '.join(PAIRS)}")
    for name, kind in PAIRS.items():
        if not isinstance(pairs[name], kind) or (kind is list and not _texts(pairs[name])):
            raise refusal("structural_tag", f"pairs of {where} have a wrong {name}")


def _check_section(where: str, section: Any, structures: Sequence[Any]) -> str:
    """How it begins."""
    keys = {"begin", "between", "end"}
    good = isinstance(section, dict) and section.keys() - {"structures"} == keys
    own = section.get("structures", []) if good else None
    if not isinstance(own, list) or not all(isinstance(section[key], str) for key in keys):
        raise refusal("structural_tag", f"{where} needs begin, between and end, as texts")
    if len(own) > MAX_STRUCTURES:
        raise refusal("structural_tag", f"{where} has more than {MAX_STRUCTURES} structures")
    for index, tag in enumerate(own):
        _check_structure(f"structure {index} of {where}", tag)
    begin: str = section["begin"] + (own or structures)[0]["begin"]
    return begin
