from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol.artifacts import Artifact, ArtifactJoiner, split
from octonode.protocol.limits import Limits
from octonode.protocol.messages import ArtifactChunk

SMALL = Limits(artifact_chunk_bytes_max=10, artifact_bytes_max=100, artifacts_open_max=2, artifacts_max=3)


@given(st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_what_is_split_joins_equal(data: bytes) -> None:
    joiner = ArtifactJoiner(SMALL)
    chunks = list(split("name", data, SMALL))
    assert all(len(chunk.data) <= 10 for chunk in chunks)
    assert [joiner.add(chunk) for chunk in chunks] == [*([None] * (len(chunks) - 1)), Artifact("name", data)]
    assert joiner.pending_bytes == joiner.unfinished == 0


def test_artifacts_may_interleave() -> None:
    joiner = ArtifactJoiner(SMALL)
    left, right = list(split("l", b"l" * 15, SMALL)), list(split("r", b"r" * 15, SMALL))
    assert [joiner.add(chunk) for chunk in (left[0], right[0], right[1])] == [None, None, Artifact("r", b"r" * 15)]
    assert joiner.add(left[1]) == Artifact("l", b"l" * 15)


def test_too_much_is_refused_by_the_sender() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        split("name", bytes(101), SMALL)
    assert caught.value.code == "TOO_LARGE"


def refused(*chunks: ArtifactChunk) -> str:
    joiner = ArtifactJoiner(SMALL)
    for chunk in chunks[:-1]:
        joiner.add(chunk)
    with pytest.raises(RemoteProtocolError) as caught:
        joiner.add(chunks[-1])
    return caught.value.code


def test_faults_of_the_sender() -> None:
    first = ArtifactChunk("a", 0, b"0123456789")
    assert refused(first, ArtifactChunk("a", 9, b"9")) == "BAD_MESSAGE"
    assert refused(first, first) == "BAD_MESSAGE"
    assert refused(first, ArtifactChunk("a", 11, b"b")) == "BAD_MESSAGE"
    assert refused(ArtifactChunk("a", 1, b"b")) == "BAD_MESSAGE"
    assert refused(ArtifactChunk("a", 0, b"")) == "BAD_MESSAGE"
    assert refused(ArtifactChunk("a", 0, bytes(11))) == "TOO_LARGE"
    assert refused(ArtifactChunk("a", 0, b"a", last=True), ArtifactChunk("a", 1, b"b")) == "BAD_MESSAGE"
    assert refused(*(ArtifactChunk(name, 0, b"a") for name in "abc")) == "TOO_LARGE"
    assert refused(*(ArtifactChunk(name, 0, b"a", last=True) for name in "abcd")) == "TOO_LARGE"


def test_unfinished_artifacts_are_bounded_together() -> None:
    joiner = ArtifactJoiner(SMALL)
    for offset in range(0, 50, 10):
        joiner.add(ArtifactChunk("a", offset, bytes(10)))
        joiner.add(ArtifactChunk("b", offset, bytes(10)))
    assert joiner.pending_bytes == 100
    with pytest.raises(RemoteProtocolError) as caught:
        joiner.add(ArtifactChunk("a", 50, b"1"))
    assert caught.value.code == "TOO_LARGE"


chunks = st.builds(
    ArtifactChunk,
    st.sampled_from("abc"),
    st.integers(0, 30),
    st.binary(max_size=12),
    st.sampled_from([False, False, True]),
)


@given(st.lists(chunks, max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_chunks_raise_only_remote_protocol_errors_within_bounds(given_chunks: list[ArtifactChunk]) -> None:
    joiner = ArtifactJoiner(SMALL)
    for chunk in given_chunks:
        with contextlib.suppress(RemoteProtocolError):
            joiner.add(chunk)
        assert joiner.pending_bytes <= 100
        assert joiner.unfinished <= 2
