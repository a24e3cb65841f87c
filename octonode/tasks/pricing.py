"""What work costs here, pure: a price for each mode from the settings, and the total of a finished task.

All figures are integers of µOCTO. What a basis means: protocols/receipt.md, section "Price".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from octonode.config import PricingConfig
from octonode.errors import ConfigError
from octonode.protocol.announcement import Serving
from octonode.protocol.messages import Mode
from octonode.protocol.receipt import Price

TOKENS_PRICED: Final = 1_000_000
"""Rates of the basis `tokens` are for so many."""

Rates = tuple[int, int]
"""(in, out)."""


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of a node. A mode that is not in `modes` is not offered; the standard price is that of no mode."""

    basis: str = "tokens"
    standard: Rates = (0, 0)
    modes: Mapping[str, Rates] = field(default_factory=dict)

    def offers(self, mode: Mode) -> bool:
        return not mode or mode in self.modes

    def rates(self, mode: Mode) -> Rates:
        return self.modes.get(mode, self.standard)

    def price(self, mode: Mode, *, tokens_in: int, tokens_out: int, milliseconds: int) -> Price:
        """For the receipt: the rates of the mode, and the total for what was done, rounded up."""
        rate_in, rate_out = self.rates(mode)
        total = total_micro_octo(self.basis, (rate_in, rate_out), (tokens_in, tokens_out), milliseconds)
        return Price(self.basis, rate_in, rate_out, total)


FREE = PriceList(modes={"realtime": (0, 0), "batch": (0, 0), "async": (0, 0)})


def price_list(settings: PricingConfig) -> PriceList:
    """As the settings say: `batch` at the standard price, `realtime` at premium, `async` at economy. ConfigError for a
    mode that there is not."""
    standard = (settings.in_micro_octo, settings.out_micro_octo)
    own = {
        "realtime": (settings.premium_in_micro_octo, settings.premium_out_micro_octo, settings.premium_factor),
        "batch": (0, 0, 1.0),
        "async": (settings.economy_in_micro_octo, settings.economy_out_micro_octo, settings.economy_factor),
    }
    for mode in settings.modes:
        if mode not in own:
            raise ConfigError(f"pricing.modes: there is no mode {mode!r}; known are {', '.join(own)}")
    modes = {
        mode: (given_in or _times(standard[0], factor), given_out or _times(standard[1], factor))
        for mode, (given_in, given_out, factor) in own.items()
        if mode in settings.modes
    }
    return PriceList(settings.basis, standard, modes)


def _times(rate: int, factor: float) -> int:
    return round(rate * factor)


def total_micro_octo(basis: str, rates: Rates, tokens: tuple[int, int], milliseconds: int) -> int:
    """Rounded up to whole µOCTO. `tokens` are (in, out); `milliseconds` from the engine's start to its end."""
    rate_in, rate_out = rates
    tokens_in, tokens_out = tokens
    if basis == "tokens":
        return -(-(tokens_in * rate_in + tokens_out * rate_out) // TOKENS_PRICED)
    if basis == "seconds":
        return -(-(rate_in + rate_out) * max(0, milliseconds) // 1000)
    return tokens_in * rate_in + tokens_out * rate_out


def announced_prices(prices: PriceList) -> dict[str, Any]:
    """The fields of a `Serving` that say what work costs here."""
    return {
        "price_basis": prices.basis,
        "price_in_micro_octo": prices.standard[0],
        "price_out_micro_octo": prices.standard[1],
        "modes": dict(prices.modes),
    }


def offered(serving: Serving, mode: Mode) -> Serving | None:
    """What a node announces, at the price of `mode`; None where it does not offer that mode."""
    if not mode:
        return serving
    rates = serving.modes.get(mode)
    if rates is None:
        return None
    return replace(serving, price_in_micro_octo=rates[0], price_out_micro_octo=rates[1])
