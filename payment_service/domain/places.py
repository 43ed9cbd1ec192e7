"""Rules of place: how a platform in one country may pay an expert in another.

They are Stripe's rules as of November 2026, and this is the one table of them (docs.stripe.com:
cross-border payouts, destination charges). Money crosses borders between the regions of the table,
by transfers. A destination charge settles on the platform, so its account must be in the platform's
own region. For any other Stripe wants ``on_behalf_of``. This service does not use it, because the
charge would then settle in the expert's country.
"""

from __future__ import annotations

from typing import Final

from payment_service.domain.errors import Precondition
from payment_service.domain.payment import ChargeModel

_EEA: Final = (
    "AT BE BG HR CY CZ DK EE FI FR DE GR HU IS IE IT LV LI LT LU MT NL NO PL PT RO SK SI ES SE"
)
#: The countries between which money may cross a border, each with its region.
CROSS_BORDER_REGIONS: Final = {
    "US": "US",
    "GB": "GB",
    "CA": "CA",
    "CH": "CH",
    **dict.fromkeys(_EEA.split(), "EEA"),
}

_ALL: Final = frozenset(ChargeModel)
_TRANSFERS: Final = frozenset({ChargeModel.SEPARATE})


def allowed_charge_models(platform_country: str, expert_country: str) -> frozenset[ChargeModel]:
    """Returns the charge models by which the platform may pay the expert; empty if by none."""
    if expert_country == platform_country:
        return _ALL
    regions = {CROSS_BORDER_REGIONS.get(one) for one in (platform_country, expert_country)}
    if None in regions:
        return frozenset()
    return _ALL if len(regions) == 1 else _TRANSFERS


def check_country(country: str, platform_country: str) -> None:
    """Raises if the platform cannot pay an expert of that country at all."""
    if not allowed_charge_models(platform_country, country):
        raise country_unsupported(country, platform_country)


def country_unsupported(country: str, platform_country: str) -> Precondition:
    """The refusal of an expert whom the platform cannot pay."""
    return Precondition(
        "COUNTRY_UNSUPPORTED",
        f"experts in {country} cannot be paid by a platform in {platform_country}",
        {"country": country, "platform_country": platform_country},
    )
