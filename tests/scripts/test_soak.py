"""What the soak calls a failure: memory that grows, or an error. The run itself is `make soak`, ten minutes."""

from __future__ import annotations

from typing import Any

import pytest

from scripts import soak

MB = 1_000_000
CLEAN: dict[str, Any] = {"frames": 1, "opens": 1, "bulk_bytes": 1, "errors": []}


@pytest.mark.parametrize(
    ("at_the_end", "errors", "holds"),
    [(100 * MB, [], True), (105 * MB, [], True), (106 * MB, [], False), (100 * MB, ["a token stream ended"], False)],
)
def test_growth_after_the_first_minute_and_any_error_fail_the_soak(
    capsys: pytest.CaptureFixture[str], at_the_end: int, errors: list[str], holds: bool
) -> None:
    warming = [10 * MB] * int(soak.WARM_SECONDS)
    steady = warming + [100 * MB] * 50
    grown = warming + [100 * MB] * 30 + [at_the_end] * 20
    assert soak.report({"server": steady, "client": grown}, CLEAN | {"errors": errors}) is holds
    assert ("NOT all held" in capsys.readouterr().out) is not holds
