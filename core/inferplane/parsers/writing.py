"""How a grammar writes calls: what a format must say of itself so that a model can be held to
whole calls in its own words. See grammar/structural_tag.py for what becomes of it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inferplane.parsers.written_calls import is_text

NAME = "NAME"
DIGITS = "\0"
"""stands for a number, as in the grammar"""
Call = tuple[str, str]
"""what stands before and after the arguments of the function NAME"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Arguments one by one: `before` each, with its KEY, and `after` it. Values are JSON; with
    `text` around them, or with nothing, they are text as it is, up to `never`."""

    before: str
    after: str = ""
    between: str = ""
    text: tuple[str, str] | None = None
    never: str = ""

    def of(self, schema: Mapping[str, Any], loose: bool) -> dict[str, Any]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) and self.text is not None else {}
        return {
            **asdict(self),
            "text": list(self.text or ("", "")),
            "texts": [key for key, part in known.items() if is_text(part)],
            "loose": loose,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Several calls in a frame; `calls` if they are not written as those without one."""

    begin: str = ""
    between: str = ""
    end: str = ""
    call: Call | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """`calls` are the ways to write one call, and `triggers` the texts with which any way to write
    one begins, where it may follow other text; with `lead` one may begin where the answer begins.
    `blocks` may come before the answer, and `text` begins one that is no call; neither has any of
    `excluded` in it."""

    calls: tuple[Call, ...]
    triggers: tuple[str, ...]
    pairs: Pairs | None = None
    sections: tuple[Section, ...] = ()
    lead: str = ""
    blocks: tuple[tuple[str, str], ...] = ()
    text: str = ""
    excluded: tuple[str, ...] = ()

    def spec(
        self,
        functions: Iterable[tuple[str, Mapping[str, Any], bool]],
        *,
        required: bool,
        many: bool,
    ) -> dict[str, Any]:
        """The structural tag for functions: (name, schema of the arguments, whether no more than
        their form is demanded)."""
        listed = list(functions)
        sections = [
            {
                "begin": section.begin,
                "between": section.between,
                "end": section.end,
                **({"structures": self._structures(section.call, listed)} if section.call else {}),
            }
            for section in self.sections
        ]
        structures = [one for call in self.calls for one in self._structures(call, listed)]
        spec: dict[str, Any] = {
            "structures": structures,
            "triggers": list(self.triggers),
            "at_least_one": required,
            "stop_after_first": not many,
            "sections": sections,
            "lead": self.lead,
            "blocks": [list(block) for block in self.blocks],
            "text": self.text,
            "excluded": list(self.excluded),
        }
        return {name: value for name, value in spec.items() if value not in ([], "")}

    def _structures(
        self, call: Call, functions: Iterable[tuple[str, Mapping[str, Any], bool]]
    ) -> list[dict[str, Any]]:
        made = []
        for name, schema, loose in functions:
            one: dict[str, Any] = {
                "begin": call[0].replace(NAME, name),
                "schema": {"type": "object"} if loose else schema,
                "end": call[1],
            }
            if self.pairs is not None:
                one |= {"schema": schema, "pairs": self.pairs.of(schema, loose)}
            made.append(one)
        return made
