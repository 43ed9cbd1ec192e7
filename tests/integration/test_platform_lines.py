"""What Stripe moves on the platform's own account by itself: booked by its type, or reported."""

from __future__ import annotations

import pytest

from payment_service.domain.ledger import DISPUTE_FEE
from payment_service.domain.platform_lines import account_of
from tests.support.books import balance, check_books
from tests.support.kinds import kind_of
from tests.support.steps.disputes import LOST, WON, decide, disputed, evidence_request, settled
from tests.support.steps.operators import open_kinds, run
from tests.support.world import World

#: Stripe's fee for a chargeback, and the one for countering it, at the simulator.
FEE = COUNTERED = 1_500


@pytest.mark.parametrize(
    ("type_", "account"),
    [
        ("stripe_fee", "platform_fees"),
        ("tax_fee", "platform_fees"),
        ("reserve_transaction", "reserves"),
        ("reserved_funds", "reserves"),
        ("payout_minimum_balance_hold", "reserves"),
        ("connect_collection_transfer", "account_deficits"),
        ("payout", "platform_bank"),
        ("topup", "platform_bank"),
        ("advance", "advances"),
        ("contribution", "contributions"),
    ],
)
async def test_a_line_of_a_known_type_is_booked_once_and_reported_never(
    world: World, type_: str, account: str
) -> None:
    given = {"amount": -250, "currency": "usd", "type": type_}
    await world.stripe.control("POST", "/balance", given)
    for _ in range(2):
        report = await run(world)
        assert [kind_of(found) for found in report.discrepancies] == []
        assert balance(world, account) == 250
        assert balance(world, "stripe:platform") + balance(world, "opening_balance") == -250
    booked = world.sql("SELECT type FROM platform_lines WHERE starts_with(line_id, 'txn_')")
    assert booked == [(type_,)]
    await check_books(world)


async def test_only_an_unknown_line_is_left_for_an_operator(world: World) -> None:
    for given in (
        {"type": "adjustment", "description": "Something that nobody knows"},
        {"type": "adjustment", "reporting_category": "fee", "description": "Radar (2026-07-01)"},
    ):
        await world.stripe.control("POST", "/balance", {"amount": -9, "currency": "usd", **given})
    await run(world)
    assert await open_kinds(world) == ["unknown_balance_transaction"]
    assert balance(world, "platform_fees") == 9


@pytest.mark.parametrize(("word", "outcome", "kept"), [("win", WON, 0), ("lose", LOST, COUNTERED)])
async def test_the_fee_for_countering_a_dispute_is_a_dispute_fee(
    world: World, word: str, outcome: int, kept: int
) -> None:
    payment_id, dispute_id = await disputed(world)
    await world.disputes.SubmitEvidence(evidence_request(dispute_id))
    await run(world)
    assert balance(world, "dispute_fee") == FEE + COUNTERED
    await decide(world, dispute_id, word)
    await settled(world, payment_id, dispute_id, outcome)
    assert balance(world, "dispute_fee") == FEE + kept
    assert await open_kinds(world) == []


def test_an_adjustment_of_an_object_is_not_the_platforms() -> None:
    words = "Card Dispute Countered Fee (2026-07-13)"
    assert account_of("adjustment", "fee", words, "") == DISPUTE_FEE
    assert account_of("adjustment", "dispute", "Chargeback withdrawal for ch_1", "dp_1") == ""
    assert account_of("adjustment", "fee", words, "dp_1") == ""
    for type_ in ("charge", "refund", "transfer", "application_fee", "issuing_transaction"):
        assert account_of(type_, "fee", words, "") == ""
