"""What operators see and do, by plain HTTP against a real service and the simulator."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from grpc import aio

from marketplace.payments.v1 import adjustments_pb2
from tests.console.conftest import NewOperator, Operator, Page
from tests.support.requests import money, new_key
from tests.support.steps.dashboard import bounce
from tests.support.steps.disputes import contest
from tests.support.steps.faults import fail_stripe
from tests.support.steps.operators import parked
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, IN_ESCROW, REFUNDING, World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = '<script>alert("1")</script> & "quotes" \''


async def test_a_payment_is_found_by_its_id_and_by_its_client(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(client_id="client-found", gig_id="gig-found")
    await shared.escrowed(client_id="client-found", gig_id="gig-other")
    ann = await new_operator("OPERATOR_READ_ONLY")
    sought = [f"q={one}" for one in (held.payment_id, held.payment_intent_id, held.charge_id)]
    for query in (*sought, "gig=gig-found"):
        page = await ann.get(f"/?{query}")
        assert (page.status, page.url) == (200, f"{ann.url}/payment?id={held.payment_id}"), query
        assert "What comes next 100.00 USD" in page.words
    found = await ann.get("/?q=client-found")
    assert held.payment_id in found.words
    assert "100.00 USD" in found.words
    assert "No payment was found" in (await ann.get("/?q=nobody")).words
    assert "No payment was found" in (await ann.get("/?q=pay_missing")).words


async def test_a_payment_shows_its_money_its_story_and_its_ledger(
    shared: World, new_operator: NewOperator
) -> None:
    payment = await shared.captured()
    ann = await new_operator("OPERATOR")
    page = await ann.get(f"/payment?id={payment.payment_id}")
    assert "Expert: 90.00 USD; Platform: commission: 10.00 USD" in page.text
    assert "In all 100.00 USD" in page.words
    assert "payment.captured" in page.words
    assert ", CapturePayment, request " in page.words
    assert "stripe:platform -3.20 USD processor_fee" in page.words


@pytest.mark.parametrize(
    ("currency", "units", "shown"), [("JPY", 10_000, "10000 JPY"), ("USD", 1_234, "12.34 USD")]
)
async def test_amounts_are_in_major_units(
    shared: World, new_operator: NewOperator, currency: str, units: int, shown: str
) -> None:
    held = await shared.escrowed(amount=units, currency=currency)
    ann = await new_operator("OPERATOR")
    assert shown in (await ann.get(f"/payment?id={held.payment_id}")).words


async def test_what_strangers_write_is_shown_and_never_run(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(description=HOSTILE)
    ann = await new_operator("OPERATOR")
    page = await ann.get(f"/payment?id={held.payment_id}")
    assert HOSTILE in page.words
    assert "<script" not in page.text
    confirm = await ann.confirm_page("capture", held.payment_id, reason=HOSTILE)
    assert HOSTILE in confirm.words
    assert "<script" not in confirm.text
    for sought in (HOSTILE, "pay_<script>"):
        found = await ann.http.get(f"{ann.url}/", params={"q": sought})
        assert "<script" not in await found.text()


async def test_a_capture_is_previewed_confirmed_and_made_once_by_a_double_click(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(escrow_mode=PLATFORM)
    ann = await new_operator("OPERATOR")
    confirm = await ann.confirm_page("capture", held.payment_id, amount="40.5", reason="Done half")
    assert "Pay expert: 36.45 USD" in confirm.words
    assert "Collect commission: 4.05 USD" in confirm.words
    assert (await shared.get(held.payment_id)).captured_amount.minor_units == 0
    form = confirm.form("/act/do")
    pages = await asyncio.gather(*(ann.post("/act/do", form) for _ in range(3)))
    pages.append(await ann.post("/act/do", form))
    for page in pages:
        assert page.status == 200, page.words
        assert "The payment is in escrow now" in page.words
    after = await shared.get(held.payment_id)
    assert (after.state, after.captured_amount.minor_units) == (IN_ESCROW, 4_050)


async def test_a_payment_that_changed_since_the_preview_is_not_touched(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(escrow_mode=PLATFORM)
    ann = await new_operator("OPERATOR")
    confirm = await ann.confirm_page("refund", held.payment_id, amount="10", reason="Half done")
    await shared.capture(held.payment_id, 5_000)
    page = await ann.post("/act/do", confirm.form("/act/do"))
    assert (page.status, "has changed since you saw it" in page.words) == (409, True)
    assert "Try again" not in page.words
    assert (await shared.get(held.payment_id)).returned_amount.minor_units == 0


async def test_a_call_without_an_answer_is_sent_again_with_the_same_key(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(escrow_mode=PLATFORM)
    ann = await new_operator("OPERATOR")
    confirm = await ann.confirm_page("capture", held.payment_id, amount="40", reason="Half")
    await shared.stripe.fault("/transfers$", "status", times=None, status=503)
    page = await ann.post("/act/do", confirm.form("/act/do"))
    assert (page.status, "the same key makes sure" in page.words) == (503, True), page.words
    await shared.stripe.clear_faults()

    async def answered() -> Page | None:
        again = await ann.post("/act/do", page.form("/act/do"))
        return again if again.status == 200 else None

    done = await until(answered, "an answer to the same call")
    assert "The payment is in escrow now" in done.words
    assert (await shared.get(held.payment_id)).captured_amount.minor_units == 4_000


async def test_a_form_says_what_is_wrong_and_keeps_what_was_entered(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(escrow_mode=PLATFORM)
    ann = await new_operator("OPERATOR")
    for amount, sentence in [
        ("1.234", "USD has 2 decimals"),
        ("1,5", "digits, with a point"),
        ("0", "must be more than zero"),
    ]:
        page = await ann.confirm_page("capture", held.payment_id, amount=amount, reason="why")
        assert (page.status, sentence in page.words) == (422, True), page.words
        assert f'value="{amount}"' in page.text
    page = await ann.confirm_page("capture", held.payment_id, reason=" ")
    assert "must be filled in" in page.words
    page = await ann.confirm_page("capture", held.payment_id, amount="500", reason="Too much")
    assert (page.status, "Choose a smaller amount." in page.words) == (422, True)
    assert "500.00 USD" in page.words


async def test_a_parked_operation_waits_and_is_resumed_once(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(escrow_mode=PLATFORM)
    await shared.refund(held.payment_id, 2_000)
    await bounce(shared, held.payment_id)
    payment = await shared.in_state(held.payment_id, REFUNDING)
    operation_id = await parked(shared, held.payment_id)
    ann = await new_operator("OPERATOR")
    waiting = await ann.get("/waiting")
    assert operation_id in waiting.words
    assert "Refund failed" in waiting.words
    assert "docs/runbook/discrepancies/refund_failed.md" in waiting.words
    shown = await ann.get(f"/payment?id={payment.payment_id}")
    assert "Platform: must be paid to the client again: 20.00 USD" in shown.text
    assert "In all 100.00 USD" in shown.words
    assert (await ann.get(f"/?q={operation_id}")).url.endswith(payment.payment_id)
    form = (await ann.confirm_page("resume", operation_id)).form("/act/do")
    first, second = [await ann.post("/act/do", form) for _ in range(2)]
    assert "The operation is resumed." in first.words
    assert "The operation is resumed." in second.words
    await shared.in_state(payment.payment_id, IN_ESCROW)


async def test_a_fraud_warning_is_dismissed_by_its_id(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(card="pm_card_createIssuerFraudRecord", escrow_mode=PLATFORM)

    async def frozen() -> str:
        return (await shared.get(held.payment_id)).frozen_by

    warning = await until(frozen, "a warning that freezes the payment")
    ann = await new_operator("OPERATOR")
    page = await ann.get(f"/payment?id={held.payment_id}")
    assert f"frozen: fraud warning {warning}" in page.words
    assert "Dismiss the fraud warning" in page.words
    refused = await ann.confirm_page("capture", held.payment_id, reason="Done")
    assert "Look at the dispute or the warning that freezes the payment." in refused.words
    confirm = await ann.confirm_page("dismiss", held.payment_id, reason="The client called")
    assert confirm.form("/act/do")["warning"] == warning
    done = await ann.post("/act/do", confirm.form("/act/do"))
    assert "The warning is dismissed." in done.words
    assert not await frozen()


async def test_a_dispute_waits_by_its_due_date_and_is_accepted(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.captured()
    dispute_id = await contest(shared, held)

    async def frozen() -> bool:
        return (await shared.get(held.payment_id)).frozen_by == dispute_id

    await until(frozen, "a payment that the dispute freezes")
    ann = await new_operator("OPERATOR")
    waiting = await ann.get("/waiting")
    assert dispute_id in waiting.words
    assert "evidence is due 20" in waiting.words
    assert (await ann.get(f"/?q={dispute_id}")).url.endswith(held.payment_id)
    page = await ann.do("accept", dispute_id)
    assert "The dispute is accepted as lost." in page.words
    assert "Client's bank: lost disputes: 100.00 USD" in (
        await until_shown(ann, held.payment_id, "lost disputes")
    )


async def until_shown(ann: Operator, payment_id: str, words: str) -> str:
    async def probe() -> str | None:
        text = (await ann.get(f"/payment?id={payment_id}")).text.replace("&#39;", "'")
        return text if words in text else None

    return await until(probe, words)


async def test_an_operation_is_abandoned_with_a_reason(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(escrow_mode=PLATFORM)
    await fail_stripe(shared, "/transfers$", 401)
    with contextlib.suppress(aio.AioRpcError):
        await shared.capture(held.payment_id, 4_000)
    operation_id = await parked(shared, held.payment_id)
    ann = await new_operator("OPERATOR")
    confirm = await ann.confirm_page("abandon", operation_id, reason="Paid otherwise")

    async def abandoned() -> Page | None:
        page = await ann.post("/act/do", confirm.form("/act/do"))
        return page if page.status == 200 else None

    assert "The operation is abandoned." in (await until(abandoned, "abandoned")).words
    assert "Paid otherwise" in (await ann.get(f"/payment?id={held.payment_id}")).words


async def test_what_is_payable_to_the_client_is_settled(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed(escrow_mode=PLATFORM)
    await shared.refund(held.payment_id, 2_000)
    await bounce(shared, held.payment_id)
    await shared.in_state(held.payment_id, REFUNDING)
    await parked(shared, held.payment_id)
    ann = await new_operator("FINANCE")
    confirm = await ann.confirm_page("settle", held.payment_id, reason="Paid by bank transfer")
    # The amount that was seen is settled, and not what is payable when the button is pressed.
    assert confirm.form("/act/do")["minor_units"] == "2000"
    page = await ann.post("/act/do", confirm.form("/act/do"))
    assert "20.00 USD is settled; 0.00 USD is still payable." in page.words
    assert (await shared.get(held.payment_id)).client_payable.minor_units == 0


async def test_a_debt_is_booked_by_two_people_and_written_off(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed()
    debt = f"expert_debt:{held.expert_id}"
    ann, ben = await new_operator("FINANCE"), await new_operator("FINANCE", name="ben")
    lines = [
        adjustments_pb2.AdjustmentLine(account=account, amount=money(units, "USD"))
        for account, units in ((debt, 1_250), ("losses", -1_250))
    ]
    answer = await shared.operations.ProposeAdjustment(
        adjustments_pb2.ProposeAdjustmentRequest(
            payment_id=held.payment_id,
            lines=lines,
            ticket="OPS-1",
            reason=HOSTILE,
            idempotency_key=new_key(),
        ),
        metadata=(("authorization", f"Bearer {ann.token}"),),
    )
    adjustment_id = answer.adjustment.adjustment_id
    waiting = await ann.get("/waiting")
    assert "you: another person must approve it" in waiting.words
    assert "losses: -12.50 USD" in waiting.words
    own = await ann.do("approve", adjustment_id)
    assert (own.status, "Another person must approve" in own.words) == (409, True)
    done = await ben.do("approve", adjustment_id)
    assert "The adjustment is posted." in done.words
    assert adjustment_id not in (await ben.get("/waiting")).words

    assert "owes 12.50 USD" in (await ann.get("/experts")).words
    assert "12.50 USD Write off" in (await ann.get(f"/expert?id={held.expert_id}")).words
    whole = await ann.confirm_page("write_off", held.expert_id, currency="USD", reason="All of it")
    assert whole.form("/act/do")["minor_units"] == "1250"
    given = {"currency": "USD", "amount": "1", "reason": "Too small"}
    confirm = await ann.confirm_page("write_off", held.expert_id, **given)
    assert "1.00 USD is written off. The expert then owes 11.50 USD." in confirm.words
    page = await ann.post("/act/do", confirm.form("/act/do"))
    assert "1.00 USD is written off; the expert still owes 11.50 USD." in page.words


async def test_balances_are_grouped_by_currency(shared: World, new_operator: NewOperator) -> None:
    await shared.captured()
    ann = await new_operator("OPERATOR_READ_ONLY")
    page = await ann.get("/balances")
    assert "USD Account Balance" in page.words
    assert "Sum of all accounts 0.00 USD" in page.words


async def test_a_run_of_the_reconciliation_says_what_it_compared(
    shared: World, new_operator: NewOperator
) -> None:
    payment = await shared.captured()
    ann = await new_operator("FINANCE")
    page = await ann.do("reconcile", payment.payment_id)
    assert "Compared 1 payments" in page.words
    assert (await shared.get(payment.payment_id)).state == CAPTURED
