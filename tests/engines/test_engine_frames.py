"""Frames: what is written is what is read, however it is cut; anything else raises FrameError and nothing else."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.contract import EngineFacts, GenerateRequest, LoadRequest, TokenLogprob
from octonode.engines.frame_codec import FrameDecoder, decode, encode
from octonode.engines.frames import (
    FRAME_BYTES_MAX,
    Beat,
    Cancel,
    EndFrame,
    ErrorFrame,
    FrameError,
    Load,
    LoadFailed,
    LogprobsFrame,
    PiecesFrame,
    PrefillFrame,
    Ready,
    ResultFrame,
    StepFrame,
    Submit,
)
from octonode.protocol.work.audio import Span, VoiceActivity
from octonode.protocol.work.image import ImageRequest
from octonode.protocol.work.text import Embeddings

LOAD = LoadRequest("llama", Path("/models/a b.gguf"), "bafy", 4096, 3, 2, {"a": 1, "b": 0.5, "c": True, "d": "é"})
REQUEST = GenerateRequest(
    ({"role": "user", "content": "hi 🎉"},), 7, temperature=0.5, top_p=0.9, seed=-5, stop=("\n",), cache_scope="a/b"
)
FACTS = EngineFacts("llama", "1", "cpu", "AVX2", 4096, 3, "Q4_1", {"n_batch": 64})
EXAMPLES = [
    Load(LOAD, True, Path("/run/w")),
    Load(LoadRequest("scripted", None, "bafy"), False, Path("w")),
    Submit(1, REQUEST),
    Submit(1, GenerateRequest((), 7, prompt="once", schema="{}", logprobs=-1)),
    Submit(1, ImageRequest("a cat", image=b"\x00\xff", seed=-1)),
    Cancel(2),
    Ready(FACTS, ("landlock abi 7", "seccomp")),
    LoadFailed("ENGINE_FAILED", "why"),
    Beat(),
    PrefillFrame(3, 64, 200),
    PiecesFrame(4, ("a", " 世界", "")),
    LogprobsFrame(4, (TokenLogprob("a", -0.5, (("a", -0.5), ("b", -1.5))), TokenLogprob(" é", 0.0))),
    StepFrame(6, 3, 20),
    ResultFrame(6, "embed", Embeddings(b"\x00" * 8, 2, tokens_in=3)),
    ResultFrame(7, "voice_activity", VoiceActivity((Span(0.5, 1.0),), 2.0)),
    EndFrame(5, "length", 10, 20, 3),
    ErrorFrame(6, "CONTEXT_EXCEEDED", "too long"),
]


@pytest.mark.parametrize("frame", EXAMPLES, ids=lambda frame: type(frame).__name__)
def test_what_is_written_is_read(frame):
    assert FrameDecoder().feed(encode(frame)) == [frame]


@given(st.lists(st.sampled_from(EXAMPLES), max_size=8), st.data())
def test_any_split_of_the_bytes_gives_the_same_frames(frames, data):
    stream = b"".join(map(encode, frames))
    decoder, got, position = FrameDecoder(), [], 0
    while position < len(stream):
        size = data.draw(st.integers(1, len(stream) - position))
        got += decoder.feed(stream[position : position + size])
        position += size
    assert got == frames


@given(st.binary(max_size=300))
def test_any_bytes_raise_only_frame_errors(data):
    with contextlib.suppress(FrameError):
        FrameDecoder().feed(data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.integers(0, 12), st.lists(PLAIN, max_size=6))
def test_any_array_with_a_tag_raises_only_frame_errors(tag, fields):
    with contextlib.suppress(FrameError):
        decode(msgpack.packb([tag, *fields]))


@given(st.sampled_from(EXAMPLES), st.data())
def test_any_changed_byte_raises_only_frame_errors(frame, data):
    payload = bytearray(encode(frame)[4:])
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        decode(bytes(payload))


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb([9, 1, "why not", 1, 1, 1]),
        msgpack.packb([10, 1, "NO_SUCH_CODE", "text"]),
        msgpack.packb([8, -1, ["a"]]),
        msgpack.packb([8, 1, ["a", 5]]),
        msgpack.packb([True]),
        msgpack.packb([8, 1, msgpack.ExtType(5, b"x")]),
        msgpack.packb([5, "ENGINE_FAILED", "x" * 5000]),
        b"\x91" * 2000,
        b"",
    ],
)
def test_what_a_worker_may_not_say(payload):
    with pytest.raises(FrameError):
        decode(payload)


def test_a_long_frame_is_refused_before_it_is_held():
    with pytest.raises(FrameError, match="limit"):
        FrameDecoder().feed(struct.pack(">I", FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"messages": ({"role": "user", "content": "\ud83d"},)}, "ENGINE_FAILED"),
        ({"seed": 2**80}, "ENGINE_FAILED"),
        ({"messages": ({"role": "user", "content": "x" * (FRAME_BYTES_MAX + 1)},)}, "TOO_LARGE"),
    ],
)
def test_what_cannot_be_written_raises_frame_errors_too(change, code):
    fields = {"messages": REQUEST.messages, "max_tokens": 1, **change}
    with pytest.raises(FrameError) as caught:
        encode(Submit(1, GenerateRequest(**fields)))
    assert caught.value.code == code
