"""Typed messages over unix sockets between the API process and the engine process.

Each side binds the socket that it reads and connects the one that it writes, so that a message
sent before the other side is up waits for it. The sockets lie in a directory that only their
owner can enter. A frame is one msgpack list of messages. Knows nothing of what they mean.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from inferplane.errors import InferplaneError
from inferplane.messages import FromEngine, ToEngine

MAX_FRAME = 64 * 2**20
"""bytes; a prompt of a million tokens takes 5 MB"""
MAX_SOCKET_PATH = 107

log = logging.getLogger(__name__)


class Start(msgspec.Struct, tag="start"):
    """The first message to a new engine process: every field of its Config."""

    config: dict[str, Any]


Message = TypeVar("Message")


class FrameDecoder(Generic[Message]):
    """Turns frames into messages. A frame that is too large, not msgpack, or holds anything but
    the messages that it knows is dropped whole, counted in `malformed` and logged."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[list[Message]]") -> None:
        self._decoder = decoder
        self.malformed = 0

    def decode(self, frame: bytes) -> list[Message]:
        if len(frame) > MAX_FRAME:
            return self._drop(f"{len(frame)} bytes, at most {MAX_FRAME}")
        try:
            return self._decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return self._drop(type(error).__name__)

    def _drop(self, reason: str) -> list[Message]:
        self.malformed += 1
        log.warning("dropped a malformed message between the processes: %s", reason)
        return []


def to_engine_decoder() -> FrameDecoder[Start | ToEngine]:
    return FrameDecoder(msgspec.msgpack.Decoder(list[Start | ToEngine]))


def from_engine_decoder() -> FrameDecoder[FromEngine]:
    return FrameDecoder(msgspec.msgpack.Decoder(list[FromEngine]))


def engine_address(directory: Path) -> str:
    """Where the engine reads."""
    return _address(directory / "engine.sock")


def api_address(directory: Path) -> str:
    """Where the API process reads."""
    return _address(directory / "api.sock")


def _address(path: Path) -> str:
    if len(str(path)) > MAX_SOCKET_PATH:
        raise InferplaneError(
            f"socket path {path} has {len(str(path))} characters, at most {MAX_SOCKET_PATH}: "
            "set TMPDIR to a shorter folder"
        )
    return f"ipc://{path}"


def configure(socket: "zmq.Socket[bytes]") -> None:
    """No drop at a high-water mark: the engine's queue is what bounds the requests in flight."""
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.set(zmq.RECONNECT_IVL, 10)
    socket.set(zmq.LINGER, 0)


class Outbox:
    """The writing end. `send` never waits."""

    def __init__(self, context: "zmq.Context[Any]", address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Socket(context, zmq.PUSH)
        configure(self._socket)
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, messages: Sequence[Start | ToEngine] | Sequence[FromEngine]) -> None:
        self._socket.send(self._encoder.encode(messages), zmq.NOBLOCK)

    def close(self, linger_ms: int = 0) -> None:
        """Give what has been sent at most `linger_ms` to leave."""
        self._socket.close(linger_ms)


class EngineInbox:
    """The engine's reading end."""

    def __init__(self, context: "zmq.Context[Any]", address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Socket(context, zmq.PULL)
        configure(self._socket)
        self._socket.bind(address)
        self.frames = to_engine_decoder()

    def receive(self, block: bool) -> list[Start | ToEngine]:
        """Everything that has arrived; with `block`, waits until something has."""
        messages: list[Start | ToEngine] = []
        if block:
            self._socket.poll()
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            messages += self.frames.decode(frame)

    def close(self) -> None:
        self._socket.close(0)
