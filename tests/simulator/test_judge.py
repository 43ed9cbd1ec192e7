"""Negative controls: what the judge of all traffic must find, and that it finds it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from stripe_simulator import rendering
from stripe_simulator.config import API_VERSION
from tests.simulator.conftest import World
from tests.support.stripe_api.extract import OBJECTS, fields_of
from tests.support.stripe_api.judge import Judge, description

CREATE = [
    ("amount", "2000"),
    ("currency", "usd"),
    ("allowed_payment_method_types[]", "card"),
    ("metadata[gig]", "7"),
    ("transfer_data[destination]", "acct_1"),
    ("expand[]", "latest_charge.balance_transaction"),
]
INTENTS = "/v1/payment_intents"


def faults_of_request(*pairs: tuple[str, str], path: str = INTENTS) -> list[str]:
    judge = Judge()
    judge.request("POST", path, pairs)
    return judge.take()


def test_a_right_request_has_no_fault() -> None:
    assert faults_of_request(*CREATE) == []


@pytest.mark.parametrize(
    ("pairs", "fault"),
    [
        (CREATE[1:], "amount is missing"),
        ([*CREATE, ("amonut", "1")], "amonut is unknown"),
        ([*CREATE, ("payment_method_types[]", "card")], "payment_method_types is unknown"),
        ([*CREATE, ("transfer_data[fee]", "1")], "transfer_data.fee is unknown"),
        ([("amount", "2000.5"), *CREATE[1:]], "amount is no integer"),
        ([*CREATE, ("confirm", "yes")], "confirm is no boolean"),
        ([*CREATE, ("capture_method", "late")], "capture_method may not be late"),
        ([*CREATE, ("allowed_payment_method_types[]", "cash")], "[] may not be cash"),
        ([*CREATE, ("description", "x" * 1001)], "description is too long"),
        ([*CREATE, ("shipping[name]", "A")], "shipping.address is missing"),
        ([*CREATE, ("transfer_data", "acct_1")], "transfer_data must be a hash"),
        ([*CREATE, ("expand[]", "latest_charge.amount")], "amount cannot be expanded"),
        ([*CREATE, ("expand[]", "last_charge")], "last_charge is no field"),
        (
            [*CREATE, ("expand[]", "latest_charge.transfer.destination.a.b")],
            "more than 4 levels",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_request_is_found(pairs: list[tuple[str, str]], fault: str) -> None:
    assert any(fault in found for found in faults_of_request(*dict(pairs).items()))


def test_an_endpoint_that_stripe_does_not_have_is_found() -> None:
    assert "no such endpoint" in faults_of_request(path="/v1/payment_intends")[0]


def _without(name: str) -> Callable[[Any], None]:
    return lambda charge: charge.pop(name)


def _with(**fields: Any) -> Callable[[Any], None]:
    return lambda charge: charge.update(fields)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_without("currency"), "charge.currency is missing"),
        (_with(colour="red"), "charge.colour is no field"),
        (_with(amount="2000"), "charge.amount is no integer"),
        (_with(captured=1), "charge.captured is no boolean"),
        (_with(amount=True), "charge.amount is no integer"),
        (_with(status="held"), "charge.status may not be held"),
        (_with(amount=None), "charge.amount is null"),
        (_with(balance_transaction={"object": "payout"}), "does not belong there"),
        (_with(metadata={"gig": 7}), "charge.metadata.* is no string"),
        (_with(billing_details=[]), "charge.billing_details is no object"),
        (_with(payment_method_details={"type": "card", "card": {"brand": 1}}), "is no string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_wrong_answer_is_found(
    world: World, spoil: Callable[[Any], None], fault: str
) -> None:
    charge = (await world.charged()).to_dict()
    judge = Judge()
    path = f"/v1/charges/{charge['id']}"
    judge.answer("GET", path, 200, copy.deepcopy(charge))
    assert judge.take() == []
    spoil(charge)
    judge.answer("GET", path, 200, charge)
    assert any(fault in found for found in judge.take())


async def test_a_wrong_event_is_found(world: World) -> None:
    await world.charged()
    found = await world.client.v1.events.list_async(params={"type": "charge.succeeded"})
    event = found.data[0].to_dict()
    judge = Judge()
    judge.event(event)
    assert judge.take() == []
    judge.event({**event, "type": "charge.paid"})
    judge.event({**event, "data": {**event["data"], "previous_attributes": {"colour": 1}}})
    judge.event({**event, "data": {"object": {**event["data"]["object"], "amount": ""}}})
    assert [fault.partition(": ")[2] for fault in judge.take()] == [
        "Stripe has no type charge.paid",
        "previous_attributes.colour is no field",
        "charge.amount is no integer",
    ]


async def test_the_traffic_of_a_simulator_is_judged(
    world: World, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a mistake in the simulator would do to every test that meets it."""
    before = judge.judged["charge"]
    charge = await world.charged()
    assert judge.judged["charge"] > before
    monkeypatch.setitem(rendering.ABSENT, "charge", frozenset({"amount", "object"}))
    world.simulator.simulation.store.change("charge", charge.id, amount=None)
    await world.client.v1.charges.retrieve_async(charge.id)
    assert any("charge.amount is missing" in fault for fault in judge.take())


def test_the_description_is_of_the_pinned_version() -> None:
    """After a new version of the package: extract anew, and read what Stripe has changed."""
    assert API_VERSION in description()["origin"]
    for kind, path in OBJECTS.items():
        if path:
            fields = set(description()["schemas"][kind]["properties"])
            assert fields_of(path) - {"OBJECT_NAME", "deleted"} <= fields, kind
