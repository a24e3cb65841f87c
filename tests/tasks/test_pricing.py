"""Prices by mode: from the settings, in announcements, in totals."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.config import PricingConfig
from octonode.errors import ConfigError
from octonode.protocol.announcement import Serving
from octonode.tasks.pricing import FREE, offered, price_list, total_micro_octo

RATES = st.integers(0, 10**9)


def test_modes_have_their_own_prices_or_factors_of_the_standard_one() -> None:
    prices = price_list(PricingConfig(in_micro_octo=100, out_micro_octo=301))
    assert prices.modes == {"realtime": (150, 452), "batch": (100, 301), "async": (50, 150)}
    assert prices.rates("") == (100, 301)
    own = price_list(PricingConfig(in_micro_octo=100, economy_in_micro_octo=7, premium_factor=2, modes=("async",)))
    assert own.modes == {"async": (7, 0)}
    assert [own.offers(mode) for mode in ("", "async", "batch", "realtime")] == [True, True, False, False]


def test_a_mode_that_there_is_not_is_an_error_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="known are realtime, batch, async"):
        price_list(PricingConfig(modes=("later",)))


@given(RATES, RATES, st.integers(0, 10**7), st.integers(0, 10**7))
def test_totals_by_tokens_are_rounded_up_once(rate_in: int, rate_out: int, tokens_in: int, tokens_out: int) -> None:
    total = total_micro_octo("tokens", (rate_in, rate_out), (tokens_in, tokens_out), 12_345)
    exact = Fraction(rate_in * tokens_in + rate_out * tokens_out, 1_000_000)
    assert exact <= total < exact + 1


@given(RATES, st.integers(-5, 10**8))
def test_totals_by_seconds_are_of_the_time_of_work(rate: int, milliseconds: int) -> None:
    total = total_micro_octo("seconds", (0, rate), (5, 9), milliseconds)
    exact = Fraction(rate * max(0, milliseconds), 1000)
    assert exact <= total < exact + 1


def test_totals_by_tokens_per_second_and_of_nothing() -> None:
    assert total_micro_octo("tokens_per_second", (0, 3), (100, 20), 999) == 60
    price = FREE.price("async", tokens_in=10, tokens_out=10, milliseconds=10)
    assert (price.total_micro_octo, price.rate_in_micro_octo) == (0, 0)


def test_a_node_is_asked_at_the_price_of_the_mode_or_not_at_all() -> None:
    serving = Serving("root", price_in_micro_octo=10, price_out_micro_octo=20, modes={"async": (1, 2)})
    cheap = offered(serving, "async")
    assert cheap is not None
    assert (cheap.price_in_micro_octo, cheap.price_out_micro_octo) == (1, 2)
    assert offered(serving, "") is serving
    assert offered(serving, "batch") is None
