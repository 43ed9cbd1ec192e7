"""Where Stripe lets a platform send money: its rules of place, as of November 2026.

Between the regions of the table money crosses borders (docs: cross-border payouts). A destination
charge that settles on the platform needs an account in the platform's own region, else
`on_behalf_of` (docs: destination charges; the message is the one that users report).
"""

from __future__ import annotations

from stripe_simulator.errors import refused
from stripe_simulator.store import Row

EEA = "AT BE BG HR CY CZ DK EE FI FR DE GR HU IS IE IT LV LI LT LU MT NL NO PL PT RO SK SI ES SE"
CROSS_BORDER = {"US": "US", "GB": "GB", "CA": "CA", "CH": "CH", **dict.fromkeys(EEA.split(), "EEA")}


def region(country: str) -> str:
    """The region of a country; one outside of the table is a region of its own."""
    return CROSS_BORDER.get(country, country)


def check_transfer(platform: str, account: Row) -> None:
    """Refuse to send money to a country that the platform's region does not reach."""
    country = account["country"]
    if region(country) == region(platform):
        return
    if country in CROSS_BORDER and platform in CROSS_BORDER:
        return
    raise refused(
        f"Funds can't be sent to accounts located in {country} because it's restricted outside of "
        "your platform's region."
    )


def check_destination_charge(platform: str, account: Row, on_behalf_of: str | None) -> None:
    """Refuse a destination charge that would settle in another region than its account's."""
    country = account["country"]
    if on_behalf_of is None and region(country) != region(platform):
        raise refused(
            f"Cannot create a destination charge for connected accounts in {country} because funds "
            "would be settled on the platform and the connected account is outside the platform's "
            "region. You may use the `on_behalf_of` parameter to have the charge settle in the "
            "connected account's country."
        )
