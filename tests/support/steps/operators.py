"""What an operator finds and decides."""

from __future__ import annotations

from typing import Any

from marketplace.payments.v1 import money_pb2, operations_pb2, payments_pb2
from tests.support.books import check_books
from tests.support.kinds import kind_of
from tests.support.requests import new_key
from tests.support.steps.dashboard import bounce
from tests.support.steps.payments import PLATFORM, owed
from tests.support.world import REFUNDING, Payment, State, World, until


async def discrepancy_kinds(world: World, payment: Payment) -> list[str]:
    return sorted(kind_of(one) for one in await world.discrepancies(payment.payment_id))


def repayments(world: World, payment_id: str) -> list[tuple[str, int, str]]:
    """The operations that were to pay the client again, oldest first: id, amount, state."""
    return [
        (str(operation_id), int(units), str(state))
        for operation_id, units, state in world.sql(
            "SELECT operation_id, minor_units, state FROM operations WHERE payment_id = %s "
            "AND purpose = 'REPAYMENT' ORDER BY create_time, operation_id",
            payment_id,
        )
    ]


async def resume(world: World, operation_id: str) -> None:
    await world.operations.ResumeOperation(
        operations_pb2.ResumeOperationRequest(operation_id=operation_id)
    )


async def repaid(world: World, payment_id: str, state: State) -> Payment:
    """An operator sends the parked repayment on; the payment then rests."""

    async def parked() -> str | None:
        found = [one for one, _, now in repayments(world, payment_id) if now == "PARKED"]
        return found[0] if found else None

    await resume(world, await until(parked, "a parked repayment"))
    payment = await world.in_state(payment_id, state)
    assert owed(world, payment_id) == 0
    await check_books(world)
    return payment


async def parked(world: World, payment_id: str) -> str:
    """Wait until an operation of the payment is parked; its id."""

    async def probe() -> str | None:
        found = world.sql(
            "SELECT operation_id FROM operations WHERE payment_id = %s AND state = 'PARKED'",
            payment_id,
        )
        return str(found[0][0]) if found else None

    return await until(probe, "a parked operation")


async def owed_after_a_bounce(world: World, **fields: Any) -> Payment:
    """Of 10,000 held, a refund of 2,000 failed: it is client payable, and 8,000 are held."""
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM, **fields)
    await world.refund(held.payment_id, 2_000)
    await bounce(world, held.payment_id)
    payment = await world.in_state(held.payment_id, REFUNDING)
    assert (payment.waiting_for, payment.held_amount.minor_units) == (
        payments_pb2.WAITING_FOR_OPERATOR,
        8_000,
    )
    return payment


async def run(world: World, payment_id: str = "") -> operations_pb2.RunReconciliationResponse:
    request = operations_pb2.RunReconciliationRequest(payment_id=payment_id)
    return await world.operations.RunReconciliation(request)


async def open_kinds(world: World) -> list[str]:
    request = operations_pb2.ListDiscrepanciesRequest(open_only=True)
    found = (await world.operations.ListDiscrepancies(request)).discrepancies
    return [kind_of(one) for one in found if kind_of(one) != "escrow_underfunded"]


async def not_sent(world: World, payment: Payment, movement: str) -> str:
    """Waits until the operation is parked for an operator, and the reason names the movement."""

    async def probe() -> str | None:
        found = world.sql(
            "SELECT operation_id FROM operations WHERE payment_id = %s AND state = 'PARKED' "
            "AND last_error LIKE %s",
            payment.payment_id,
            f"%moved out of band meanwhile:%{movement} %",
        )
        return str(found[0][0]) if found else None

    operation_id = await until(probe, "parked because of what was moved out of band")
    assert (await world.get(payment.payment_id)).waiting_for == payments_pb2.WAITING_FOR_OPERATOR
    return operation_id


async def abandon(world: World, operation_id: str) -> None:
    """As soon as no request of it can be on its way any more."""
    asked = operations_pb2.AbandonOperationRequest(
        operation_id=operation_id, reason="done otherwise"
    )

    async def done() -> bool:
        reply = await world.raw("OperationsService/AbandonOperation", asked.SerializeToString())
        assert reply.refused is None or reply.refused.reason == "OPERATION_IN_PROGRESS"
        return reply.refused is None

    await until(done, "abandoned")


async def write_off(world: World, payment: Payment, amount: int) -> None:
    """The operator settles with the expert what was taken out of band."""
    await world.operations.WriteOffExpertDebt(
        operations_pb2.WriteOffExpertDebtRequest(
            expert_id=payment.expert_id,
            currency_code="USD",
            amount=money_pb2.Money(minor_units=amount),
            reason="reversed at the dashboard",
            idempotency_key=new_key(),
        )
    )
