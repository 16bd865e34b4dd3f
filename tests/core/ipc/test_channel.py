"""Frames between the processes: what arrives is a known message or is dropped and counted."""

from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest
import zmq

from inferplane.errors import InferplaneError
from inferplane.ipc import channel
from inferplane.ipc.channel import (
    EngineInbox,
    FrameDecoder,
    Outbox,
    Start,
    engine_address,
    from_engine_decoder,
    to_engine_decoder,
)
from inferplane.messages import (
    Abort,
    Fatal,
    FlushCache,
    ModelInfo,
    Output,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    Stats,
    Submit,
    ToEngine,
    TokenLogprobs,
)
from inferplane.sampling_params import SamplingParams

INFO = ModelInfo(
    model="m",
    architecture="a",
    vocab_size=9,
    max_model_len=9,
    dtype="float32",
    device="none",
    kv_tokens=9,
    max_running=9,
)
SUBMIT = Submit(
    request_id="r",
    prompt=[1, 2],
    params=SamplingParams(logit_bias={1: 0.5}, stop=["x"], seed=-1),
    stop_ids=[3],
    max_tokens=4,
    seed=2**64 - 1,
)
LOGPROBS = [TokenLogprobs(token=1, logprob=-0.5, rank=1, top=[(1, -0.5)])]
OUTPUT = Output(request_id="r", tokens=[1], logprobs=LOGPROBS, prompt_logprobs=[None, *LOGPROBS])
TO_ENGINE = [Start(config={"model": "m"}), SUBMIT, Abort("r"), Ping(1), FlushCache(2)]
FROM_ENGINE = [
    Ready(INFO),
    Progress("p"),
    OUTPUT,
    Refused(request_id="r", message="m", status=429),
    Pong(1, Stats(running=3)),
    Fatal("f"),
]
encode = msgspec.msgpack.encode

nested = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda m: type(m).__name__)
def test_to_the_engine_and_back(message: Any) -> None:
    assert to_engine_decoder().decode(encode([message])) == [message]


@pytest.mark.parametrize("message", FROM_ENGINE, ids=lambda m: type(m).__name__)
def test_from_the_engine_and_back(message: Any) -> None:
    assert from_engine_decoder().decode(encode([message])) == [message]


def decoders() -> list[FrameDecoder[Any]]:
    return [to_engine_decoder(), from_engine_decoder()]


def must_not_crash(frame: bytes) -> None:
    for decoder in decoders():
        messages = decoder.decode(frame)
        assert isinstance(messages, list)
        assert not messages or decoder.malformed == 0
        for message in messages:
            assert type(message).__module__.startswith("inferplane.")


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(max_examples=500, deadline=None)
def test_any_bytes(frame: bytes) -> None:
    must_not_crash(frame)


@hypothesis.given(nested)
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_msgpack(value: Any) -> None:
    must_not_crash(encode(value))
    must_not_crash(encode([value]))


@hypothesis.given(
    st.sampled_from([encode([m]) for m in [*TO_ENGINE, *FROM_ENGINE]]),
    st.data(),
)
@hypothesis.settings(max_examples=1000, deadline=None)
def test_damaged_messages(frame: bytes, data: st.DataObject) -> None:
    damaged = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(damaged) - 1))
        damaged[where] = data.draw(st.integers(0, 255))
    must_not_crash(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


@hypothesis.given(st.sampled_from(["submit", "output", "pong", "none"]), nested)
@hypothesis.settings(max_examples=200, deadline=None)
def test_right_tag_wrong_fields(tag: str, value: Any) -> None:
    fields = value if isinstance(value, dict) else {"request_id": value}
    must_not_crash(encode([{**fields, "type": tag}]))


DROPPED = {
    "nothing": b"",
    "not a list": encode(Ping(1)),
    "unknown tag": encode([{"type": "shutdown"}]),
    "no tag": encode([{"nonce": 1}]),
    "wrong type": encode([{"type": "ping", "nonce": "1"}]),
    "one bad of two": encode([Ping(1), {"type": "ping"}]),
    "promises 4 GB": b"\xdd\xff\xff\xff\xff",
    "promises 4 GB of text": b"\x91\xdb\xff\xff\xff\xff",
    "very deep": b"\x91" * 100_000,
    "two frames": encode([Ping(1)]) * 2,
    "unknown sampling field": encode(
        [{**msgspec.to_builtins(SUBMIT), "params": {"temprature": 1.0}}]
    ),
}


@pytest.mark.parametrize("name", DROPPED)
def test_dropped_and_counted(name: str) -> None:
    decoder = to_engine_decoder()
    assert decoder.decode(DROPPED[name]) == []
    assert decoder.malformed == 1
    assert decoder.decode(encode([Ping(7)])) == [Ping(7)]


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = encode([Progress("x" * 100)])
    monkeypatch.setattr(channel, "MAX_FRAME", len(frame))
    decoder = from_engine_decoder()
    assert len(decoder.decode(frame)) == 1
    monkeypatch.setattr(channel, "MAX_FRAME", len(frame) - 1)
    assert decoder.decode(frame) == [] and decoder.malformed == 1


def test_a_message_waits_for_its_reader(tmp_path: Path) -> None:
    """Also the garbage between two messages does not stop the reader."""
    wanted: list[Start | ToEngine] = [Ping(2), Abort("x")]
    with zmq.Context() as context:
        address = engine_address(tmp_path)
        outbox = Outbox(context, address)
        outbox.send([Ping(1)])
        inbox = EngineInbox(context, address)
        try:
            assert inbox.receive(block=True) == [Ping(1)]
            outbox._socket.send(b"\xc1garbage")
            outbox.send(wanted)
            received = inbox.receive(block=True)
            received = received or inbox.receive(block=True)  # the garbage may come alone
            assert received == wanted
            assert inbox.frames.malformed == 1
            assert inbox.receive(block=False) == []
        finally:
            inbox.close()
            outbox.close()


def test_a_long_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferplaneError, match="set TMPDIR to a shorter folder"):
        engine_address(tmp_path / ("x" * 120))
