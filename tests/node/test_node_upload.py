"""What may be announced as an upload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.api.schema import parse
from octonode.api.schema.uploads import CreateUpload, UploadFile
from octonode.errors import OctonodeError
from octonode.models.manifest import safe_path
from octonode.node.upload import check_request


@pytest.mark.parametrize(
    "body",
    [
        {"files": []},
        {"files": [{"path": "../m", "size_bytes": 1}]},
        {"files": [{"path": "/m", "size_bytes": 1}]},
        {"files": [{"path": ".hidden", "size_bytes": 1}]},
        {"files": [{"path": "a/.b/c", "size_bytes": 1}], "name": "n"},
        {"files": [{"path": "a\\..\\b\x00", "size_bytes": 1}]},
        {"files": [{"path": "m", "size_bytes": -1}]},
        {"files": [{"path": "m", "size_bytes": 2**60}]},
        {"files": [{"path": "m", "size_bytes": 1}, {"path": "m", "size_bytes": 1}], "name": "n"},
        {"files": [{"path": "m", "size_bytes": 1}, {"path": "m/x", "size_bytes": 1}], "name": "n"},
        {"files": [{"path": "a", "size_bytes": 1}, {"path": "b", "size_bytes": 1}]},
        {"files": [{"path": "m", "size_bytes": 1}], "name": "Not A Name"},
        {"files": [{"path": "m", "size_bytes": 1}], "version": "one"},
        {"files": [{"path": "m", "size_bytes": 1}], "fingerprint": "x" * 1000},
        {"files": [{"path": "m", "size_bytes": 1}], "nonsense": 1},
        {"files": [{"path": f"m{n}", "size_bytes": 1} for n in range(1025)], "name": "n"},
    ],
)
def test_requests_that_could_never_be_finished(body: dict[str, Any]) -> None:
    with pytest.raises(OctonodeError) as caught:
        check_request(parse(CreateUpload, body))
    assert caught.value.code == "BAD_REQUEST"


def test_good_request_passes() -> None:
    check_request(CreateUpload((UploadFile("a/b.gguf", 5), UploadFile("a/c.json", 0)), name="n", version="1.0.0-rc.1"))


PARTS = st.sampled_from(["a", "b", ".", "..", ".x", "", "a b", "\x00", "Ä", "con", "~"])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=5))
def test_whatever_is_announced_only_safe_and_distinct_paths_pass(paths: list[str]) -> None:
    try:
        check_request(CreateUpload(tuple(UploadFile(path, 1) for path in paths), name="n"))
    except OctonodeError:
        return
    assert all(safe_path(path) and "/." not in f"/{path}" for path in paths)
    assert not any(a != b and b.startswith(f"{a}/") for a in paths for b in paths)
    assert len(set(paths)) == len(paths)
