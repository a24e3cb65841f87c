"""`octonode` on a machine whose wall clock is off by CLOCK_OFF_SECONDS: what peers make of it is the test's matter."""

from __future__ import annotations

import os
import time

_true_ns = time.time_ns
_off_ns = int(os.environ["CLOCK_OFF_SECONDS"]) * 1_000_000_000
time.time_ns = lambda: _true_ns() + _off_ns

from octonode.cli.main import run  # noqa: E402  # after the clock was set

run()
