"""The books held against Stripe's, line by line, and against themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Final

from marketplace.payments.v1 import events_pb2
from tests.support.world import World

_GLANCES: Final = 20
_BETWEEN_GLANCES: Final = 0.1


async def check_books(world: World) -> None:
    """Everything that must be true whenever nothing is under way."""
    await world.settle_down()
    _check_sums(world)
    _check_rows(world)
    await check_against_stripe(world)
    await check_trails(world)


async def check_against_stripe(world: World) -> None:
    """Each of Stripe's balance transactions moved what our postings on it say, to the unit.

    A job may be collecting a debt just now: Stripe has it a moment before the books.
    """
    for _ in range(_GLANCES):
        try:
            return await _agrees_with_stripe(world)
        except AssertionError:
            await asyncio.sleep(_BETWEEN_GLANCES)
    return await _agrees_with_stripe(world)


async def _agrees_with_stripe(world: World) -> None:
    ours: Counter[tuple[str, str, str]] = Counter()
    for account, currency, line, sum_ in world.sql(
        "SELECT account, currency, balance_transaction_id, sum(minor_units)::bigint "
        # The opening balance sums the lines of before the books: test_opening_balance has it.
        "FROM postings WHERE account LIKE 'stripe:%%' AND kind <> 'opening_balance' "
        "GROUP BY 1, 2, 3"
    ):
        ours[account, currency, line] += sum_
    theirs: Counter[tuple[str, str, str]] = Counter()
    accounts = {"": "stripe:platform"}
    for expert_id, account in world.sql(
        "SELECT expert_id, stripe_account_id FROM accounts WHERE readable"
    ):
        accounts[account] = f"stripe:connected:{expert_id}"
    for account, name in accounts.items():
        for line in await world.stripe.lines(account):
            # A line without a source is Stripe's own, or made by a test's own hand. Reconciliation
            # books what its type explains.
            booked = (name, line["currency"].upper(), line["id"]) in ours
            if line["source"] is not None or booked:
                theirs[name, line["currency"].upper(), line["id"]] += line["net"]
    # Stripe names no line of the connected account on a fee refund: those have no id with us.
    unnamed = {key for key in ours if not key[2]}
    left = {key: sum_ for key, sum_ in theirs.items() if ours.pop(key, 0) != sum_ and sum_}
    ours_left = {key: sum_ for key, sum_ in ours.items() if sum_}
    assert set(ours_left) <= unnamed, f"not at Stripe: {ours_left}, not with us: {left}"
    assert _by_account(ours_left) == _by_account(left)


def _by_account(lines: Mapping[tuple[str, str, str], int]) -> Counter[tuple[str, str]]:
    sums: Counter[tuple[str, str]] = Counter()
    for (account, currency, _), sum_ in lines.items():
        sums[account, currency] += sum_
    return sums


async def check_trails(world: World) -> None:
    """One event for each version, an unbroken chain, and its head on the payment's row."""
    for payment_id, version, head in world.sql(
        "SELECT payment_id, version, head_hash FROM payments"
    ):
        events: list[events_pb2.PaymentEvent] = []
        token = ""
        while True:
            page = await world.events.ListPaymentEvents(
                events_pb2.ListPaymentEventsRequest(
                    payment_id=payment_id, page_size=200, page_token=token
                )
            )
            assert page.chain_intact
            events += page.events
            token = page.next_page_token
            if not token:
                break
        assert [event.sequence for event in events] == list(range(1, version + 1))
        assert events[-1].hash == bytes(head)


def _check_sums(world: World) -> None:
    assert not world.sql(
        "SELECT payment_id, expert_id, sequence, currency FROM postings "
        "GROUP BY 1, 2, 3, 4 HAVING sum(minor_units) <> 0"
    )
    sums = {
        (account, currency): int(sum_)
        for account, currency, sum_ in world.sql(
            "SELECT account, currency, sum(minor_units) FROM postings GROUP BY 1, 2"
        )
    }
    on_the_platform = {
        (f"escrow:{payment_id}", currency): -held
        for payment_id, currency, held in world.sql(
            "SELECT payment_id, currency, held FROM payments WHERE charged > 0 AND held > 0"
        )
    }
    in_escrow = {key: sum_ for key, sum_ in sums.items() if key[0].startswith("escrow:") and sum_}
    assert in_escrow == on_the_platform
    held = {
        currency: int(sum_)
        for currency, sum_ in world.sql(
            "SELECT currency, sum(held) FILTER (WHERE charged = 0) FROM payments GROUP BY 1"
        )
        if sum_ is not None
    }
    for currency, sum_ in held.items():
        assert sums.get(("hold", currency), 0) == sum_
        assert sums.get(("client", currency), 0) == -sum_
    for payment_id, currency, owed in world.sql(
        "SELECT payment_id, currency, client_payable FROM payments"
    ):
        assert sums.get((f"client_payable:{payment_id}", currency), 0) == -owed
    # No debt is paid twice.
    overpaid = {
        key: sum_ for key, sum_ in sums.items() if key[0].startswith("expert_debt:") and sum_ < 0
    }
    assert not overpaid, _postings_of(world, overpaid)
    # No payment pays what its expert owes for another one, except by what its captures kept back.
    twice = world.sql(
        "SELECT account, currency FROM postings WHERE starts_with(account, 'expert_debt:') "
        "AND payment_id IS NOT NULL AND kind <> 'debt_netted' "
        "AND NOT (kind = 'adjusted' AND minor_units < 0) "
        "GROUP BY payment_id, account, currency HAVING sum(minor_units) < 0"
    )
    assert not twice, _postings_of(world, twice)


def _postings_of(world: World, accounts: Collection[tuple[str, str]]) -> list[Any]:
    """The postings of these accounts, to be read when a check fails."""
    return world.sql(
        "SELECT payment_id, sequence, account, currency, minor_units, kind FROM postings "
        "WHERE account = ANY(%s) ORDER BY time",
        [[account for account, _ in accounts]],
    )


def _check_rows(world: World) -> None:
    """No summary may say what its history does not."""
    assert not world.sql(
        "SELECT payment_id, state FROM payments WHERE "
        "(state IN ('CANCELED', 'EXPIRED') AND (held <> 0 OR charged <> 0)) "
        "OR (charged > 0 AND charged <> held + captured + refunded_from_escrow + lost_held) "
        "OR (state = 'REFUNDED' AND captured <> refunded_after_capture + lost) "
        "OR (state IN ('CAPTURED', 'REFUNDED', 'CANCELED', 'EXPIRED') AND operation_id <> '')"
    )
    # What the bank holds for a dispute is on the books, and the disputed amount is untouched.
    assert not world.sql(
        "SELECT payment_id FROM payments WHERE (frozen IN ('INQUIRY', 'CHARGEBACK')) <> EXISTS "
        "(SELECT FROM disputes WHERE disputes.payment_id = payments.payment_id AND (outcome = "
        "'OPEN' OR (outcome = 'LOST' AND withdrawn > reinstated + disputes.lost)))"
    )
    # A key without an answer belongs to an operation that waits for an operator, or to none.
    assert not world.sql(
        "SELECT k.claim_id FROM idempotency_keys k LEFT JOIN operations USING (operation_id) "
        "WHERE k.settle_time IS NULL AND operations.state IS DISTINCT FROM 'PARKED'"
    )


def balance(world: World, account: str, currency: str = "USD") -> int:
    """What an account of the ledger stands at: debit positive."""
    [(sum_,)] = world.sql(
        "SELECT COALESCE(sum(minor_units), 0)::bigint FROM postings "
        "WHERE account = %s AND currency = %s",
        account,
        currency,
    )
    return int(sum_)
