"""ExplainPayment against real worlds: the whole story, by any id, and what comes next."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from psycopg2.errors import ReadOnlySqlTransaction

from marketplace.payments.v1 import explain_pb2, operations_pb2, payments_pb2
from payment_service.domain.story.sentences import NOT_KNOWN
from tests.support.errors import refusal
from tests.support.nursery import Nursery
from tests.support.requests import new_name
from tests.support.steps.disputes import decide, disputed
from tests.support.steps.operators import owed_after_a_bounce
from tests.support.world import World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Explained = explain_pb2.ExplainPaymentResponse
CALL = explain_pb2.STORY_ENTRY_KIND_CALL
EVENT = explain_pb2.STORY_ENTRY_KIND_EVENT
WEBHOOK = explain_pb2.STORY_ENTRY_KIND_WEBHOOK
POSTINGS = explain_pb2.STORY_ENTRY_KIND_POSTINGS
REQUEST = explain_pb2.STORY_ENTRY_KIND_STRIPE_REQUEST
OUTCOME = explain_pb2.STORY_ENTRY_KIND_STRIPE_OUTCOME


async def explain(world: World, given: str, **fields: Any) -> Explained:
    request = explain_pb2.ExplainPaymentRequest(id=given, **fields)
    return await world.operations.ExplainPayment(request)


def sentences(explained: Explained) -> list[str]:
    return [entry.sentence for entry in explained.entries]


def options(explained: Explained) -> list[str]:
    return [option.rpc.partition("/")[2] for option in explained.outlook.options]


def names(explained: Explained, kind: int) -> list[str]:
    return [entry.name for entry in explained.entries if entry.kind == kind]


async def test_the_story_of_a_capture_and_a_refund(shared: World) -> None:
    payment = await shared.captured()
    await shared.refund(payment.payment_id, 4_000)
    await shared.settle_down()
    found = await explain(shared, payment.payment_id)
    assert names(found, CALL) == ["InitiatePayment", "CapturePayment", "RefundPayment"]
    assert names(found, REQUEST) == ["create_intent", "capture", "refund", "reverse_transfer"]
    assert sorted(names(found, OUTCOME)) == sorted(names(found, REQUEST))
    assert "refund.created" in names(found, WEBHOOK)
    assert names(found, EVENT) == [
        kind
        for (kind,) in shared.sql(
            "SELECT kind FROM events WHERE payment_id = %s ORDER BY sequence", payment.payment_id
        )
    ]
    told = "\n".join(sentences(found))
    assert "100.00 USD was captured: 10.00 USD is commission" in told
    assert "40.00 USD went back to the client (re_" in told
    assert "36.00 USD was taken back from the expert (trr_" in told
    assert NOT_KNOWN not in told
    times = [entry.entry_time.ToNanoseconds() for entry in found.entries]
    assert times == sorted(times)
    lines = [line for entry in found.entries for line in entry.postings]
    [(postings,)] = shared.sql(
        "SELECT count(*) FROM postings WHERE payment_id = %s", payment.payment_id
    )
    assert len(lines) == postings
    assert sum(line.amount.minor_units for line in lines) == 0
    assert found.outlook.mover == explain_pb2.MOVER_UNSPECIFIED
    assert "54.00 USD the expert's" in found.summary
    assert found.payment == await shared.get(payment.payment_id)
    assert not found.left_out


async def test_it_is_found_by_every_id_that_a_person_has(shared: World) -> None:
    client, gig = new_name("client"), new_name("gig")
    payment = await shared.captured(client_id=client, gig_id=gig)
    await shared.refund(payment.payment_id, 1_000)
    await shared.settle_down()
    found = await explain(shared, payment.payment_id)
    ids = {one for entry in found.entries for one in entry.ids}
    prefixes = {one.partition("_")[0] for one in ids}
    assert {"pi", "ch", "re", "tr", "trr", "evt", "op", "txn"} <= prefixes
    ours = {one for one in ids if not one.startswith(("py_", "fee_"))}
    for one in sorted(ours | {client, gig, payment.expert_id, payment.payment_intent_id}):
        matches = (await explain(shared, one)).matches
        assert [match.payment_id for match in matches] == [payment.payment_id], one


async def test_several_payments_are_listed_newest_first(shared: World) -> None:
    client = new_name("client")
    expert = await shared.expert()
    first = await shared.initiate(expert, client_id=client)
    second = await shared.initiate(expert, 5_001, "JPY", client_id=client)
    found = await explain(shared, client)
    assert [match.payment_id for match in found.matches] == [
        second.payment.payment_id,
        first.payment.payment_id,
    ]
    assert found.matches[0].sentence.startswith("5001 JPY for gig-1, from client-")
    assert not found.HasField("payment")
    assert not found.entries


async def test_an_id_that_names_nothing_is_not_found(shared: World) -> None:
    for given in ("pay_" + "0" * 32, "evt_x", "disc_99999999", "disc_²", "op_1", "nobody"):
        request = explain_pb2.ExplainPaymentRequest(id=given)
        refused = await refusal(shared.operations.ExplainPayment(request))
        assert (refused.code, refused.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND"), given


async def test_pages_hold_the_same_story_as_one_page(shared: World) -> None:
    payment = await shared.captured()
    await shared.refund(payment.payment_id)
    await shared.settle_down()
    whole = await explain(shared, payment.payment_id)
    paged: list[explain_pb2.StoryEntry] = []
    token, pages = "", 0
    while True:
        page = await explain(shared, payment.payment_id, page_size=2, page_token=token)
        paged += page.entries
        pages += 1
        assert page.outlook == whole.outlook
        token = page.next_page_token
        if not token:
            break
    assert pages > 2
    assert sorted(map(str, paged)) == sorted(map(str, whole.entries))


async def test_a_dispute_says_until_when_and_how_to_answer(shared: World) -> None:
    payment_id, dispute_id = await disputed(shared)
    await shared.settle_down()
    found = await explain(shared, dispute_id)
    assert found.payment.payment_id == payment_id
    assert found.outlook.mover == explain_pb2.MOVER_OPERATOR
    assert options(found) == ["SubmitEvidence", "AcceptDispute"]
    assert {option.id for option in found.outlook.options} == {dispute_id}
    assert any("bank takes an answer" in timer.sentence for timer in found.outlook.timers)
    await decide(shared, dispute_id, "lose")

    async def lost() -> Explained | None:
        told = await explain(shared, payment_id)
        return told if "payment.dispute_lost" in names(told, EVENT) else None

    over = await until(lost, "the loss is explained")
    assert NOT_KNOWN not in "\n".join(sentences(over))
    assert f"The dispute {dispute_id} was lost: 100.00 USD" in "\n".join(sentences(over))


async def test_a_failed_refund_waits_for_an_operator(shared: World) -> None:
    payment = await owed_after_a_bounce(shared)
    found = await explain(shared, payment.payment_id)
    assert found.outlook.mover == explain_pb2.MOVER_OPERATOR
    assert found.outlook.waits_for.startswith("An operator must decide about the request to refund")
    assert options(found)[:2] == ["ResumeOperation", "SettleClientPayable"]
    assert "ResolveDiscrepancy" in options(found)
    listed = operations_pb2.ListOperationsRequest(payment_id=payment.payment_id)
    [parked] = (await shared.operations.ListOperations(listed)).operations
    assert found.outlook.options[0].id == parked.operation_id
    assert NOT_KNOWN not in "\n".join(sentences(found))


async def test_whose_move_it_is_on_the_way(shared: World) -> None:
    expert = await shared.expert()
    initiated = await shared.initiate(expert)
    payment_id = initiated.payment.payment_id
    await shared.settle_down()
    waiting = (await explain(shared, payment_id)).outlook
    assert waiting.mover == explain_pb2.MOVER_CLIENT
    assert [timer.sentence for timer in waiting.timers] == [
        "If the client has not paid, it is canceled."
    ]
    await shared.confirm(initiated)
    await shared.in_state(payment_id, payments_pb2.PAYMENT_STATE_IN_ESCROW)
    held = (await explain(shared, payment_id)).outlook
    assert held.mover == explain_pb2.MOVER_CALLER
    assert any(timer.sentence.startswith("CARD_AUTHORIZATION") for timer in held.timers)


def run(nursery: Nursery, world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a process of its own, as an operator does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STRIPE_")}
    told = {**kept, "DATABASE_URL": world.database_url, "COLUMNS": "200"}
    return nursery.run("payment_service", *arguments, env=told)


async def test_the_command_tells_the_story(nursery: Nursery, shared: World) -> None:
    payment = await shared.captured(currency="JPY", amount=5_001)
    await shared.settle_down()
    done = run(nursery, shared, "explain", payment.payment_intent_id)
    assert done.returncode == 0, done.stderr
    assert payment.payment_id in done.stdout.splitlines()[0]
    assert "5001 JPY was captured: 500 JPY is commission" in done.stdout
    assert "Whose move it is: nobody" in done.stdout
    unknown = run(nursery, shared, "explain", "nobody")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "nobody: there is no payment with this id\n"


async def test_a_story_is_of_one_moment_and_writes_nothing(shared: World) -> None:
    assert shared.service is not None
    database = shared.service.app.database

    def count(reader: Any) -> int:
        return int(reader._one("SELECT count(*) AS count FROM jobs")["count"])

    def look_twice(reader: Any) -> tuple[int, int]:
        before = count(reader)
        shared.sql("INSERT INTO jobs (name, next_time) VALUES (%s, now())", new_name("job"))
        return before, count(reader)

    def write(reader: Any) -> None:
        reader._do("DELETE FROM jobs")

    before, after = await database.read_at_once(look_twice)
    assert before == after
    assert await database.read_at_once(count) == before + 1
    with pytest.raises(ReadOnlySqlTransaction):
        await database.read_at_once(write)
    assert await database.read(count) == before + 1
