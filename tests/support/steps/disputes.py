"""Disputes, and what the service and the banks do about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marketplace.payments.v1 import disputes_pb2, operations_pb2, payments_pb2
from payment_service.domain.discrepancies import BALANCE_KINDS
from tests.support.books import check_books
from tests.support.kinds import kind_of
from tests.support.requests import new_key
from tests.support.world import Payment, World, until

CHARGEBACK = disputes_pb2.DISPUTE_STAGE_CHARGEBACK
OPEN = disputes_pb2.DISPUTE_OUTCOME_OPEN
WON = disputes_pb2.DISPUTE_OUTCOME_WON
LOST = disputes_pb2.DISPUTE_OUTCOME_LOST
CLOSED = disputes_pb2.DISPUTE_OUTCOME_CLOSED
Dispute = disputes_pb2.Dispute


def evidence_request(
    dispute_id: str, text: str = "It was delivered.", **fields: Any
) -> disputes_pb2.SubmitEvidenceRequest:
    given = {
        "evidence": disputes_pb2.Evidence(
            uncategorized_text=text, service_date="2026-11-01", receipt="file_1234"
        ),
        "submit": True,
        "idempotency_key": new_key(),
    }
    return disputes_pb2.SubmitEvidenceRequest(dispute_id=dispute_id, **{**given, **fields})


def acceptance_request(dispute_id: str) -> disputes_pb2.AcceptDisputeRequest:
    return disputes_pb2.AcceptDisputeRequest(dispute_id=dispute_id, idempotency_key=new_key())


async def disputed(world: World, *, inquiry: bool = False, **fields: Any) -> tuple[str, str]:
    """A captured payment and its dispute."""
    payment = await world.captured(amount=10_000, **fields)
    dispute_id = await contest(world, payment, inquiry=inquiry)
    await dispute_where(world, dispute_id)
    return payment.payment_id, dispute_id


async def contest(world: World, payment: Payment, **fields: Any) -> str:
    """The client's bank opens a dispute; its id at Stripe."""
    shown = await world.stripe.control("POST", f"/charges/{payment.charge_id}/dispute", fields)
    return str(shown["id"])


async def decide(world: World, dispute_id: str, word: str) -> None:
    """The bank says `win`, `lose`, `escalate` or `close_warning`; or somebody says `appeal`."""
    await world.stripe.control("POST", f"/disputes/{dispute_id}/{word}", {})


async def dispute_where(
    world: World, dispute_id: str, what: Callable[[Dispute], bool] = lambda _: True
) -> Dispute:
    """Wait until the dispute is on record, and so."""

    async def probe() -> Dispute | None:
        found = [
            dispute
            for dispute in (
                await world.disputes.ListDisputes(disputes_pb2.ListDisputesRequest())
            ).disputes
            if dispute.dispute_id == dispute_id
        ]
        return found[0] if found and what(found[0]) else None

    return await until(probe, f"{dispute_id} on record")


async def frozen(world: World, payment_id: str) -> str:
    freeze = (await world.get(payment_id)).freeze
    return payments_pb2.PaymentFreeze.Name(freeze).removeprefix("PAYMENT_FREEZE_")


async def settled(world: World, payment_id: str, dispute_id: str, outcome: int) -> Payment:
    """Wait until the dispute has ended so and nothing is left to do; the books must be right."""
    await dispute_where(
        world,
        dispute_id,
        lambda dispute: (
            dispute.outcome == outcome
            and (
                outcome != LOST
                or dispute.lost_amount.minor_units
                == dispute.withdrawn_amount.minor_units - dispute.reinstated_amount.minor_units
            )
        ),
    )
    await check_books(world)
    report = await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    assert not [invariant for invariant in report.invariants if invariant.violations]
    # A payout by a test's own hand is no payment's.
    lines = [
        found
        for found in report.discrepancies
        if kind_of(found) in BALANCE_KINDS
        and kind_of(found) != "escrow_underfunded"
        and "(payout)" not in found.detail
    ]
    assert not lines
    payment = await world.get(payment_id)
    assert payment.freeze == payments_pb2.PAYMENT_FREEZE_NONE
    return payment
