"""The events of a response that has ended, as its stream told or would have told them, but for the
size of the pieces: each text comes in one."""

from collections.abc import Iterator
from typing import Any

from inferplane.server.responses.output import Event


def replay(resource: dict[str, Any]) -> Iterator[Event]:
    """Numbered from 0."""
    for number, event in enumerate(_events(resource)):
        yield {**event, "sequence_number": number}


def _events(resource: dict[str, Any]) -> Iterator[Event]:
    early = {**resource, "status": "in_progress", "output": [], "completed_at": None}
    early |= {"error": None, "incomplete_details": None}
    early.pop("usage", None)
    yield {"type": "response.created", "response": early}
    yield {"type": "response.in_progress", "response": early}
    for index, item in enumerate(resource["output"]):
        yield from _item(index, item)
    kind = "failed" if resource["status"] == "cancelled" else resource["status"]
    yield {"type": f"response.{kind}", "response": resource}


def _item(index: int, item: dict[str, Any]) -> Iterator[Event]:
    at = {"item_id": item["id"], "output_index": index}
    nothing: dict[str, Any] = {"content": []}
    if item["type"] == "function_call":
        nothing = {"arguments": ""}
    opened = {**item, "status": "in_progress", **nothing}
    yield {"type": "response.output_item.added", "output_index": index, "item": opened}
    if item["type"] == "function_call":
        name = "response.function_call_arguments"
        yield {"type": f"{name}.delta", **at, "delta": item["arguments"]}
        said = {"name": item["name"], "arguments": item["arguments"]}
        yield {"type": f"{name}.done", **at, **said}
    else:
        yield from _part(at, item["content"][0])
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _part(at: dict[str, Any], part: dict[str, Any]) -> Iterator[Event]:
    at = {**at, "content_index": 0}
    empty = {**part, "text": ""}
    logprobs = {}
    if "logprobs" in part:
        empty["logprobs"] = []
        logprobs = {"logprobs": part["logprobs"]}
    name = f"response.{part['type']}"
    yield {"type": "response.content_part.added", **at, "part": empty}
    yield {"type": f"{name}.delta", **at, "delta": part["text"], **logprobs}
    yield {"type": f"{name}.done", **at, "text": part["text"], **logprobs}
    yield {"type": "response.content_part.done", **at, "part": part}
