"""Rules of place: which charge models may pay an expert of a country."""

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.payment import ChargeModel
from payment_service.domain.places import (
    CROSS_BORDER_REGIONS,
    allowed_charge_models,
    check_country,
)
from stripe_simulator.regions import CROSS_BORDER

BOTH = frozenset(ChargeModel)
TRANSFERS = frozenset({ChargeModel.SEPARATE})


@pytest.mark.parametrize(
    ("platform", "country", "models"),
    [
        ("US", "US", BOTH),
        ("JP", "JP", BOTH),
        ("DE", "FR", BOTH),
        ("IE", "NO", BOTH),
        ("DE", "US", TRANSFERS),
        ("US", "DE", TRANSFERS),
        ("GB", "IE", TRANSFERS),
        ("CH", "GB", TRANSFERS),
        ("CA", "US", TRANSFERS),
    ],
)
def test_a_destination_charge_stays_in_the_platforms_region(
    platform: str, country: str, models: frozenset[ChargeModel]
) -> None:
    assert allowed_charge_models(platform, country) == models
    check_country(country, platform)


@pytest.mark.parametrize(
    ("country", "platform"),
    [("JP", "US"), ("US", "JP"), ("BR", "DE"), ("AU", "NZ"), ("", "US"), ("us", "US")],
)
def test_no_money_leaves_the_regions_of_the_table(country: str, platform: str) -> None:
    assert not allowed_charge_models(platform, country)
    with pytest.raises(Precondition) as refusal:
        check_country(country, platform)
    assert refusal.value.reason == "COUNTRY_UNSUPPORTED"
    assert refusal.value.facts == {"country": country, "platform_country": platform}


def test_the_table_is_the_economic_area_and_its_four_neighbours() -> None:
    assert len(CROSS_BORDER_REGIONS) == 30 + 4
    assert len(set(CROSS_BORDER_REGIONS.values())) == 5
    assert CROSS_BORDER_REGIONS == CROSS_BORDER, "the simulator's table is another one"
