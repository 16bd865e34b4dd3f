"""One schema document: what its references mean, and where its parts are. No remote documents."""

from typing import Any
from urllib.parse import unquote

from inferplane.errors import RequestError

Schema = dict[str, Any] | bool

MAX_DEPTH = 64
MAX_NODES = 100_000


class Unsupported(RequestError):
    """A keyword that no engine enforces exactly, at a JSON pointer (RFC 6901)."""

    def __init__(self, keyword: str, pointer: str, why: str = "is not supported") -> None:
        self.keyword, self.pointer = keyword, pointer
        super().__init__(
            f"json_schema: keyword {keyword!r} at {pointer or '/'} {why}",
            param="json_schema",
            code="unsupported_schema",
        )


def child(pointer: str, *parts: str | int) -> str:
    """The pointer to something inside."""
    escaped = [str(part).replace("~", "~0").replace("/", "~1") for part in parts]
    return "/".join([pointer, *escaped])


def check_size(root: Any) -> None:
    """RequestError for a document nested too deeply, or with too many values."""
    level, count = [root], 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            below += value.values() if isinstance(value, dict) else value
        below = [value for value in below if isinstance(value, dict | list)]
        count += len(below)
        if count > MAX_NODES:
            raise Unsupported("$schema", "", f"has more than {MAX_NODES} parts")
        if not below:
            return
        level = below
    raise RequestError(
        f"json_schema: nested more than {MAX_DEPTH} levels deep",
        param="json_schema",
        code="invalid_grammar",
    )


class Document:
    """The root schema. `resolve` finds what a $ref stands for."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self._anchors: dict[str, str] = {}
        self._embedded = False  # a part has an $id of its own
        self._index(root, "")

    def resolve(self, ref: Any, at: str) -> tuple[Schema, str]:
        """(schema, its pointer). Unsupported for what is not in this document."""
        if not isinstance(ref, str):
            raise Unsupported("$ref", at, "must be a string")
        base, _, fragment = ref.partition("#")
        if self._embedded:
            raise Unsupported("$id", at, "inside a schema with references is not supported")
        own = self.root.get("$id", self.root.get("id")) if isinstance(self.root, dict) else None
        if base and base != str(own).partition("#")[0]:
            raise Unsupported("$ref", at, "to another document is not supported")
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if fragment not in self._anchors:
                raise Unsupported("$ref", at, "to an unknown anchor")
            fragment = self._anchors[fragment]
        value: Any = self.root
        for part in fragment.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                raise Unsupported("$ref", at, "points to nothing")
        if not isinstance(value, dict | bool):
            raise Unsupported("$ref", at, "points to something that is no schema")
        return value, fragment

    def _index(self, value: Any, pointer: str) -> None:
        if isinstance(value, list):
            for index, item in enumerate(value):
                self._index(item, child(pointer, index))
        if not isinstance(value, dict):
            return
        for name in ("$anchor", "$id", "id"):
            text = value.get(name)
            if not isinstance(text, str):
                continue
            if name == "$anchor" or text.startswith("#"):
                self._anchors[text.removeprefix("#")] = pointer
            elif pointer and (name == "$id" or not pointer.endswith("/properties")):
                self._embedded = True
        for key, item in value.items():
            if key not in ("const", "enum", "default", "examples"):
                self._index(item, child(pointer, key))
