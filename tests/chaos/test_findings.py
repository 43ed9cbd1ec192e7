"""What was violated is told whole, at the very end, and all that is known about it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from chaos.checks import Violation
from chaos.evidence import read_tables
from chaos.findings import Finding, keep, look_up, payments_of
from chaos.plan import plan_of
from chaos.report import Report, show
from chaos.simulator import Simulator
from tests.chaos.evidence import NOW, PAYMENT, on_the_platform
from tests.support.requests import refund_request
from tests.support.running import running_world

#: Of an operation, which the checks do not read.
_COLUMNS = {
    **{"attempt": 1, "tries": 1, "last_error": "", "create_time": NOW},
    **{"minor_units": 5, "payload": {}},
}
_LONG = "taken back twice " * 400
_MANY = [
    *(Violation("at_most_one_effect", f"reversed {number} times", PAYMENT) for number in range(40)),
    Violation("due_is_taken_back_once", f"{_LONG}until its end", PAYMENT),
]


def failed(*found: Violation) -> Report:
    """A run with the columns that a story shows."""
    world = on_the_platform()
    world.payments[0] |= {"lost": 0, "frozen": "NONE", "waiting_for": "", "operation_id": ""}
    world.payments[0]["expert_id"] = "e"
    for row in world.events:
        body = {"facts": {}, **json.loads(row["body"]), "by": {"rpc": "RefundPayment"}}
        row["body"] = json.dumps(body)
    world.operations = [{**_COLUMNS, **row} for row in world.operations]
    return Report(
        plan=plan_of(1, 12),
        evidence=world,
        violations=list(found),
        converged_after=1.0,
        seconds=13.0,
    )


def test_the_output_ends_with_every_violation_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = failed(*_MANY)
    report.kept = tmp_path / "violations.txt"
    show(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-len(_MANY) :] == [f"  ! {violation}" for violation in _MANY]
    assert lines[-1].endswith(f"until its end [{PAYMENT}]")
    assert lines[-len(_MANY) - 1] == (
        f"  seed 1 FAILED; everything about it is in {tmp_path / 'violations.txt'}"
    )


def test_a_run_that_holds_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show(failed())
    assert capsys.readouterr().out.splitlines()[-1] == "  all holds"


def test_all_that_is_known_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("service-1 a line\n")
    finding = Finding(
        ["The expert gave it back."],
        {"reversals": [{"id": "trr_1", "amount": 4_899}], "intents": [{"client_secret": "pi_s"}]},
    )
    file = keep(failed(*_MANY), {PAYMENT: finding}, log, tmp_path / "found")
    beside = file.parent / "log.txt"
    assert beside.read_text() == "service-1 a line\n"
    lines = file.read_text().splitlines()
    assert f"the log of its processes: {beside}" in lines
    assert {str(violation) for violation in _MANY} <= set(lines)
    assert "The expert gave it back." in lines
    assert 'reversal {"id": "trr_1", "amount": 4899}' in lines
    assert any(line.startswith("event 8 ") for line in lines)
    assert any(line.startswith('movements {"movement_id": "tr_1"') for line in lines)
    assert "pi_s" not in file.read_text()


@pytest.mark.parametrize(
    ("what", "payment_id"),
    [
        ("it is so", PAYMENT),
        ("refund op_4 succeeded without an effect", ""),
        ("tr_1 is on our side alone", ""),
        ("pi_1 was captured and canceled", ""),
        ("e owes 5 USD, left of it should be 4", ""),
    ],
)
def test_a_violation_leads_to_its_payment(what: str, payment_id: str) -> None:
    assert payments_of(failed().evidence, Violation("check", what, payment_id)) == [PAYMENT]


def test_a_violation_may_be_about_no_payment() -> None:
    about = Violation("every_fault_struck", "e-1 struck 0 times, wanted 1")
    assert payments_of(failed().evidence, about) == []


async def test_a_payment_is_looked_up_here_and_at_stripe(database_url: str, tmp_path: Path) -> None:
    async with running_world(database_url) as world, aiohttp.ClientSession() as http:
        paid = await world.captured(amount=17_254)
        await world.payments.RefundPayment(refund_request(paid.payment_id, 5_443))
        await world.settle_down()
        simulator = Simulator(world.stripe.url, http)
        evidence = failed().evidence
        read_tables(evidence, database_url, [])
        evidence.transfers = await simulator.list("/transfers")
        evidence.refunds = await simulator.list("/refunds")
        evidence.intents = await simulator.list("/payment_intents")
        evidence.effects = await world.stripe.effects()
        about = [Violation("due_is_taken_back_once", "twice", paid.payment_id)]
        found = await look_up(evidence, about, world.channel, simulator)
    finding = found[paid.payment_id]
    assert any("stripe_request: " in sentence for sentence in finding.explained)
    assert [one["amount"] for one in finding.at_stripe["reversals"]] == [4_899]
    assert [one["amount"] for one in finding.at_stripe["refunds"]] == [5_443]
    assert [one["amount"] for one in finding.at_stripe["charges"]] == [17_254]
    report = failed(*about)
    report.evidence = evidence
    log = tmp_path / "log"
    log.touch()
    assert paid.payment_intent_id in keep(report, found, log, tmp_path).read_text()


async def test_what_cannot_be_looked_up_is_said(database_url: str) -> None:
    async with running_world(database_url) as world, aiohttp.ClientSession() as http:
        paid = await world.captured()
        evidence = failed().evidence
        read_tables(evidence, database_url, [])
        gone = Simulator("http://127.0.0.1:1", http)
        assert world.service is not None
        await world.service.stop()
        about = [Violation("check", "what", paid.payment_id)]
        finding = (await look_up(evidence, about, world.channel, gone))[paid.payment_id]
    assert finding.explained[-1].startswith("not explained: UNAVAILABLE")
    assert finding.at_stripe["charges"][0]["not read"].startswith("/charges: ")
