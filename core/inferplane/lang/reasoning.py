"""A model's reasoning told from its answer, for programs that ask for it."""

from collections.abc import Sequence

from inferplane.errors import ConfigError, ProgramError
from inferplane.parsers.choose import AUTO, NONE, choose
from inferplane.parsers.events import Event, Reasoning, Text

ALIASES = {"glm45": "glm-4.5", "kimi_k2": "kimi-k2", "qwen3-thinking": "qwen3"}
"""SGLang's name -> ours, where they differ"""


def variable_of(name: str) -> str:
    """The variable that keeps the reasoning of the variable `name`."""
    return f"{name}_reasoning_content"


def checked(model_type: str) -> str:
    """The name of a format, or OPEN...CLOSE; ProgramError if there is none of this name."""
    name = ALIASES.get(model_type, model_type)
    if name in (AUTO, NONE):
        raise ProgramError(f"separate_reasoning: model_type is {name!r}, must name a format")
    try:
        choose(NONE, name, "")
    except ConfigError as error:
        why = str(error).partition(", ")[2]
        raise ProgramError(f"separate_reasoning: model_type is {model_type!r}, {why}") from None
    return name


class Apart:
    """Takes one answer, piece by piece, apart. Both methods give (text, reasoning), what is new."""

    def __init__(self, model_type: str, prompt: str) -> None:
        """`prompt`: what the answer follows; it may have begun the reasoning."""
        parsers = choose(NONE, model_type, "")
        inside = parsers.starts_inside(prompt)
        self._parser = parsers.parser(None, in_reasoning=inside, separate=True, schemas={})()

    def push(self, text: str) -> tuple[str, str]:
        return _split(self._parser.push(text))

    def flush(self) -> tuple[str, str]:
        return _split(self._parser.flush())


def _split(events: Sequence[Event]) -> tuple[str, str]:
    text = "".join(event.text for event in events if isinstance(event, Text))
    return text, "".join(event.text for event in events if isinstance(event, Reasoning))


def taken_apart(model_type: str, prompt: str, text: str) -> tuple[str, str]:
    """A whole answer: (text, reasoning)"""
    apart = Apart(model_type, prompt)
    said, thought = apart.push(text)
    more, rest = apart.flush()
    return said + more, thought + rest
