"""Fixtures of the muxer's tests. What the tests call by name is in `ends` and `links`."""

from __future__ import annotations

import pytest

from tests.network.muxing.ends import Ends


@pytest.fixture
def ends() -> Ends:
    return Ends()
