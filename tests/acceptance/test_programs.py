"""The whole contract by grpcurl and by `buf curl`, with nothing but reflection to go by."""

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from dev.forwarding import signature
from payment_service.domain.bundles import check_bundle
from tests.acceptance.browser import look, submit
from tests.acceptance.conftest import WEBHOOK_SECRETS, World, new_name, until
from tests.acceptance.programs import PACKAGE, Answer, BufCurl, Grpcurl, Program

SERVICES = {
    f"{PACKAGE}.{name}Service"
    for name in (
        "Dispute",
        "Event",
        "Expert",
        "Ledger",
        "Onboarding",
        "Operations",
        "Payment",
        "Webhook",
    )
}


@pytest.fixture
def grpcurl(world: World) -> Grpcurl:
    return Grpcurl(world.address)


@pytest.fixture
def bufcurl(world: World) -> BufCurl:
    return BufCurl(world.address)


class Caller:
    """Asks, and takes for granted that it is answered with OK."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, method: str, **request: Any) -> Mapping[str, Any]:
        answer = self.refused(method, **request)
        assert answer.code == "OK", f"{method}: {answer}"
        return answer.response

    def refused(self, method: str, **request: Any) -> Answer:
        return self.program.ask(method, request)


def methods_of(grpcurl: Grpcurl) -> set[str]:
    """Every RPC of the contract, as reflection lists them."""
    listed = grpcurl.run(method="list").stdout.split()
    ours = [service for service in listed if service.startswith(PACKAGE)]
    found: set[str] = set()
    for service in ours:
        for method in grpcurl.run(method=f"list {service}").stdout.split():
            name = method.removeprefix(f"{PACKAGE}.")
            found.add("/".join(name.rsplit(".", 1)))
    return found


def test_services_are_listed(grpcurl: Grpcurl, bufcurl: BufCurl) -> None:
    listed = set(grpcurl.run(method="list").stdout.split())
    standard = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert listed == SERVICES | standard
    assert set(bufcurl.run("--list-services").stdout.split()) == listed


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_service_and_all_its_messages_are_described(
    world: World, grpcurl: Grpcurl, service: str
) -> None:
    """All of them by reflection alone; grpcurl shows the first two, and starts a process each."""
    reflected = DescriptorPool(ProtoReflectionDescriptorDatabase(world.channel))
    described = grpcurl.run(method=f"describe {service}").stdout
    methods = grpcurl.run(method=f"list {service}").stdout.split()
    assert methods
    names = [method.rpartition(".")[2] for method in methods]
    for name in names:
        assert f"rpc {name} ( .{PACKAGE}.{name}Request )" in described
        for message in (f"{name}Request", f"{name}Response"):
            found = reflected.FindMessageTypeByName(f"{PACKAGE}.{message}")
            assert found.name == message
    for message in (f"{names[0]}Request", f"{names[0]}Response"):
        shown = grpcurl.run(method=f"describe {PACKAGE}.{message}").stdout
        assert f"message {message}" in shown


def test_every_rpc_by_grpcurl(world: World, grpcurl: Grpcurl) -> None:
    live(world, grpcurl)
    answer_banks(world, Caller(grpcurl))
    let_pass_and_replace(world, Caller(grpcurl))
    watch(grpcurl)
    operate(world, Caller(grpcurl))
    settle_what_is_owed(world, Caller(grpcurl))
    correct_the_books(Caller(grpcurl))
    prove(Caller(grpcurl), world.captured(world.ready_expert()).payment_id)
    erase(Caller(grpcurl))
    assert grpcurl.driven == methods_of(grpcurl), "drive every RPC here"


def erase(ask: Caller) -> None:
    """The client of the life asks to be forgotten, after nothing of them is open any more."""
    assert len(ask("ExpertService/ListExperts", page_size=1)["experts"]) == 1
    user = {"user_id": "client-9", "kind": "USER_KIND_CLIENT", "reason": "ticket 7"}
    assert ask("OperationsService/EraseUser", **user)["erased_text_count"] > 0
    again = ask("OperationsService/EraseUser", **user)
    assert (again["payment_count"], again.get("erased_text_count", 0)) == (1, 0)


def test_a_whole_lifecycle_by_buf_curl(world: World, bufcurl: BufCurl) -> None:
    live(world, bufcurl)


def live(world: World, program: Program) -> None:
    """An expert, and a payment from initiation to a refund, as a person at a terminal does it."""
    ask = Caller(program)
    expert_id = onboard(world, ask)
    order: dict[str, Any] = {
        "client_id": "client-9",
        "expert_id": expert_id,
        "gig_id": "gig-9",
        "amount": {"minor_units": 10_000, "currency_code": "USD"},
        "description": "A logo",
        "expected_completion_time": in_days(4),
        "on_deadline": "ON_DEADLINE_REFUND",
        "idempotency_key": new_name("key"),
    }
    looked = ask("PaymentService/InitiatePayment", **order, validate_only=True)
    assert "payment_id" not in looked["payment"]
    made = ask("PaymentService/InitiatePayment", **order)
    assert made["payment"]["escrow_mode"] == "ESCROW_MODE_CARD_HOLD"
    assert made["payment"]["mode_reason"] == "MODE_REASON_FITS_CARD_HOLD"
    payment_id = made["payment"]["payment_id"]
    assert made["payment"]["state"] == "PAYMENT_STATE_PENDING"
    assert made["application_fee"] == {"minor_units": "1250", "currency_code": "USD"}
    assert made["publishable_key"] == "pk_test_simulator"
    assert world.pay(made["client_secret"]).status == 200

    def in_escrow() -> bool:
        status = ask("PaymentService/GetPaymentStatus", payment_id=payment_id)
        return bool(status["state"] == "PAYMENT_STATE_IN_ESCROW")

    until(in_escrow, "the money is in escrow")
    due = {
        "user_id": "client-9",
        "role": "PAYMENT_ROLE_CLIENT",
        "states": ["PAYMENT_STATE_IN_ESCROW"],
    }
    for days, listed in ((1, False), (5, True)):
        found = ask("PaymentService/ListPayments", **due, max_deadline_time=in_days(days))
        ids = [payment["payment_id"] for payment in found.get("payments", ())]
        assert (payment_id in ids) is listed
    capture_and_refund(ask, payment_id)
    account(ask, payment_id, expert_id)


def onboard(world: World, ask: Caller) -> str:
    expert_id = new_name("expert")
    created = ask(
        "ExpertService/CreateExpertAccount",
        expert_id=expert_id,
        name="Ada Lovelace",
        email="ada@example.com",
        business_type="BUSINESS_TYPE_COMPANY",
    )
    assert created["expert"]["status"] == "EXPERT_STATUS_ONBOARDING"
    early = ask.refused("ExpertService/CreateDashboardLink", expert_id=expert_id)
    assert (early.code, early.reason) == ("FAILED_PRECONDITION", "ONBOARDING_INCOMPLETE")
    fresh = ask("ExpertService/RefreshOnboarding", expert_id=expert_id)["onboarding_url"]
    assert fresh != created["onboarding_url"]
    landing = submit(fresh).location
    assert landing.startswith(f"{world.stack.gateway_url}/onboarding/return?token=")
    token = landing.partition("token=")[2]
    standing = ask("OnboardingService/GetOnboardingStatus", onboarding_token=token)
    assert standing["status"] == "EXPERT_STATUS_READY"
    assert ask("OnboardingService/CreateOnboardingLink", onboarding_token=token)["onboarding_url"]
    shown = ask("ExpertService/GetExpert", expert_id=expert_id)["expert"]
    assert shown["status"] == "EXPERT_STATUS_READY"
    assert shown["transfers_active"] is True
    assert ask("ExpertService/CreateDashboardLink", expert_id=expert_id)["url"]
    ask("ExpertService/SetCommission", expert_id=expert_id, commission_basis_points=1250)
    return expert_id


def capture_and_refund(ask: Caller, payment_id: str) -> None:
    key = new_name("key")
    part = {"minor_units": 9_000}
    request: dict[str, Any] = {"payment_id": payment_id, "amount": part, "idempotency_key": key}
    held = ask.refused("PaymentService/CapturePayment", **request)
    assert (held.code, held.reason) == ("FAILED_PRECONDITION", "WOULD_RELEASE_REMAINDER")
    assert held.facts["held"] == "10000"
    looked = ask("PaymentService/CapturePayment", **request, final=True, validate_only=True)
    assert {leg["kind"]: leg["amount"]["minor_units"] for leg in looked["preview"]["legs"]} == {
        "LEG_KIND_CHARGE_CARD": "9000",
        "LEG_KIND_RELEASE_HOLD": "1000",
        "LEG_KIND_COLLECT_COMMISSION": "1125",
        "LEG_KIND_PAY_EXPERT": "7875",
    }
    seen = int(looked["payment"]["version"])
    past = ask.refused(
        "PaymentService/CapturePayment", **request, final=True, expected_version=seen - 1
    )
    assert (past.code, past.reason) == ("ABORTED", "VERSION_MISMATCH")
    assert (past.facts["expected_version"], past.facts["version"]) == (str(seen - 1), str(seen))
    request["expected_version"] = seen
    captured = ask("PaymentService/CapturePayment", **request, final=True)
    assert captured["payment"]["state"] == "PAYMENT_STATE_CAPTURED"
    assert captured == ask("PaymentService/CapturePayment", **request, final=True)
    other = ask.refused("PaymentService/CapturePayment", **request)
    assert (other.code, other.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")
    assert other.facts["field"] == "final"
    refund: dict[str, Any] = {"payment_id": payment_id, "reason": "half was not done"}
    refunded = ask(
        "PaymentService/RefundPayment",
        **refund,
        amount={"minor_units": 4_500, "currency_code": "USD"},
        idempotency_key=new_name("key"),
    )
    assert refunded["payment"]["net_amount"]["minor_units"] == "4500"
    rest = ask("PaymentService/RefundPayment", **refund, idempotency_key=new_name("key"))
    assert rest["payment"]["state"] == "PAYMENT_STATE_REFUNDED"
    assert rest["payment"]["refunded_amount"]["minor_units"] == "9000"


def account(ask: Caller, payment_id: str, expert_id: str) -> None:
    shown = ask("PaymentService/GetPayment", payment_id=payment_id)["payment"]
    listed = ask("PaymentService/ListPayments", user_id=expert_id, role="PAYMENT_ROLE_EXPERT")
    assert listed["payments"] == [shown]
    trail = ask("EventService/ListPaymentEvents", payment_id=payment_id)
    assert trail["chain_intact"] is True
    assert [int(event["sequence"]) for event in trail["events"]] == list(
        range(1, len(trail["events"]) + 1)
    )
    postings = ask("LedgerService/ListPostings", payment_id=payment_id)["postings"]
    assert sum(int(line["amount"].get("minor_units", 0)) for line in postings) == 0
    story = ask("OperationsService/ExplainPayment", id=shown["payment_intent_id"])
    assert story["payment"] == shown
    assert [
        entry["name"] for entry in story["entries"] if entry["kind"] == "STORY_ENTRY_KIND_EVENT"
    ] == [event["kind"] for event in trail["events"]]
    balances = ask("LedgerService/ListBalances", account_prefix=f"expert_funds:{expert_id}")
    assert [line["balance"].get("minor_units", "0") for line in balances["balances"]] == ["0"]
    month = shown["create_time"][:7]
    report = ask("LedgerService/GetMonthlyReport", month=month, currency_code="USD")
    [dollars] = report["currencies"]
    figures = {one["name"]: one["amount"] for one in dollars["figures"]}
    assert int(figures["charged"]["minor_units"]) >= int(figures["captured"]["minor_units"]) > 0
    statement = ask("LedgerService/GetExpertStatement", expert_id=expert_id, month=month)
    assert {line["payment_id"] for line in statement["lines"]} == {payment_id}
    held = ask("ExpertService/GetExpertBalance", expert_id=expert_id)["balances"]
    assert [line["funds"].get("minor_units", "0") for line in held] == ["0"]
    assert not ask("ExpertService/ListPayouts", expert_id=expert_id).get("payouts")
    unknown = ask.refused("PaymentService/GetPayment", payment_id="pay_" + "0" * 32)
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
    assert unknown.facts["payment_id"] == "pay_" + "0" * 32
    faulty = ask.refused("PaymentService/InitiatePayment", amount={"currency_code": "XXX"})
    assert (faulty.code, faulty.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    required = {"client_id", "expert_id", "gig_id", "idempotency_key"}
    assert set(faulty.fields) == required | {"amount.currency_code"}


def answer_banks(world: World, ask: Caller) -> None:
    """One dispute is answered and won; one is accepted, and the expert's debt is written off."""
    expert_id = world.ready_expert()
    won, lost = contested(world, ask, expert_id), contested(world, ask, expert_id)
    listed = ask("DisputeService/ListDisputes", expert_id=expert_id, open_only=True)["disputes"]
    # Newest first; but Stripe tells seconds, and both may be of the same one.
    assert {dispute["dispute_id"] for dispute in listed} == {lost, won}
    unknown = ask.refused("DisputeService/GetDispute", dispute_id="dp_nothing")
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "DISPUTE_NOT_FOUND")
    submit_evidence(world, ask, won)
    accept = {"dispute_id": lost, "idempotency_key": new_name("key")}
    # Never, until the debt is written off: what the account has would be collected.
    refusal = {"action": "status", "status": 400, "code": "balance_insufficient"}
    world.control("faults", {"match": {"method": "POST", "path": "/reversals$"}, **refusal})
    accepted = ask("DisputeService/AcceptDispute", **accept)
    assert accepted["dispute"]["outcome"] == "DISPUTE_OUTCOME_LOST"
    assert accepted == ask("DisputeService/AcceptDispute", **accept)

    def debt() -> list[str]:
        balances = ask("ExpertService/GetExpertBalance", expert_id=expert_id)["balances"]
        return [line["debt"].get("minor_units", "0") for line in balances]

    until(lambda: debt() == ["9000"], "the expert owes what was lost")
    write_off: dict[str, Any] = {
        "expert_id": expert_id,
        "currency_code": "USD",
        "reason": "left us",
    }

    def asked(key: str, **amount: Any) -> Answer | None:
        """Returns None while a collection is in progress: what it takes cannot be written off."""
        answer = ask.refused(
            "OperationsService/WriteOffExpertDebt", **write_off, **amount, idempotency_key=key
        )
        return None if answer.facts.get("available") == "0" else answer

    def write_off_debt(minor_units: int | None = None) -> Answer:
        key = new_name("key")
        amount = {"minor_units": minor_units, "currency_code": "USD"}
        given = {"amount": amount} if minor_units else {}
        return until(lambda: asked(key, **given), "an answer while nothing is collected")

    too_much = write_off_debt(9_001)
    assert (too_much.code, too_much.reason) == ("FAILED_PRECONDITION", "AMOUNT_TOO_LARGE")
    assert (too_much.facts["requested"], too_much.facts["available"]) == ("9001", "9000")
    assert write_off_debt(4_000).response["debt"]["minor_units"] == "5000"
    assert write_off_debt().response["written_off_amount"]["minor_units"] == "5000"
    look(f"{world.stack.simulator_url}/_simulator/faults", method="DELETE")
    assert debt() == ["0"]


def prove(ask: Caller, payment_id: str) -> None:
    """The bundle of a payment is checked by itself."""
    proof = ask("OperationsService/ExportPaymentProof", payment_id=payment_id)
    assert int(proof["event_count"]) > 0
    checked = check_bundle(base64.b64decode(proof["bundle"]), None)
    assert checked.faults == []


def correct_the_books(ask: Caller) -> None:
    """Nobody is authenticated here, so all callers are one: a proposal can only be rejected."""
    line = {"account": "losses", "amount": {"minor_units": 5, "currency_code": "USD"}}
    other = {"account": "fx", "amount": {"minor_units": -5, "currency_code": "USD"}}
    proposal: dict[str, Any] = {
        "lines": [line, other],
        "ticket": "FIN-7",
        "reason": "a test",
        "idempotency_key": new_name("key"),
    }
    proposed = ask("OperationsService/ProposeAdjustment", **proposal)
    assert proposed == ask("OperationsService/ProposeAdjustment", **proposal)
    which: dict[str, Any] = {"adjustment_id": proposed["adjustment"]["adjustment_id"]}
    refused = ask.refused(
        "OperationsService/ApproveAdjustment", **which, idempotency_key=new_name("key")
    )
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "APPROVER_IS_PROPOSER")
    ask(
        "OperationsService/RejectAdjustment",
        **which,
        reason="a test",
        idempotency_key=new_name("key"),
    )
    listed = ask("OperationsService/ListAdjustments", state="ADJUSTMENT_STATE_REJECTED")
    assert which["adjustment_id"] in {one["adjustment_id"] for one in listed["adjustments"]}


def contested(world: World, ask: Caller, expert_id: str) -> str:
    """The client's bank takes the money of a captured payment back; its dispute's id."""
    payment = world.captured(expert_id)
    dispute_id: str = world.control(f"charges/{payment.charge_id}/dispute", {})["id"]
    method = "DisputeService/GetDispute"
    until(lambda: ask.refused(method, dispute_id=dispute_id).code == "OK", "it is on record")
    shown = ask(method, dispute_id=dispute_id)["dispute"]
    assert shown["payment_id"] == payment.payment_id
    assert shown["stage"] == "DISPUTE_STAGE_CHARGEBACK"
    assert shown["outcome"] == "DISPUTE_OUTCOME_OPEN"
    assert shown["amount"] == {"minor_units": "10000", "currency_code": "USD"}
    frozen = ask.refused(
        "PaymentService/RefundPayment",
        payment_id=payment.payment_id,
        idempotency_key=new_name("key"),
    )
    assert (frozen.code, frozen.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert frozen.facts["dispute_id"] == dispute_id
    return dispute_id


def submit_evidence(world: World, ask: Caller, dispute_id: str) -> None:
    method = "DisputeService/SubmitEvidence"
    nothing = ask.refused(
        method, dispute_id=dispute_id, submit=True, idempotency_key=new_name("key")
    )
    assert (nothing.code, nothing.fields) == ("INVALID_ARGUMENT", ("evidence",))
    staged = ask(
        method,
        dispute_id=dispute_id,
        evidence={"service_date": "May 1st", "uncategorized_text": "It was delivered."},
        idempotency_key=new_name("key"),
    )["dispute"]
    assert staged["has_evidence"] is True
    assert staged["status"] == "needs_response"
    submission = {"dispute_id": dispute_id, "submit": True, "idempotency_key": new_name("key")}
    submitted = ask(method, **submission)
    assert submitted["dispute"]["submission_count"] == 1
    assert submitted["dispute"]["status"] == "under_review"
    assert submitted == ask(method, **submission)
    late = ask.refused(method, **{**submission, "idempotency_key": new_name("key")})
    assert (late.code, late.reason) == ("FAILED_PRECONDITION", "EVIDENCE_ALREADY_SUBMITTED")
    world.control(f"disputes/{dispute_id}/win", {})

    def outcome() -> str:
        shown = ask("DisputeService/GetDispute", dispute_id=dispute_id)["dispute"]
        return str(shown["outcome"])

    until(lambda: outcome() == "DISPUTE_OUTCOME_WON", "the bank's word is on record")


def settle_what_is_owed(world: World, ask: Caller) -> None:
    """A refund bounces, and the client is paid in another way, half and half."""
    payment_id = world.captured(world.ready_expert()).payment_id
    ask("PaymentService/RefundPayment", payment_id=payment_id, idempotency_key=new_name("key"))
    found = f"SELECT movement_id FROM movements WHERE payment_id = '{payment_id}'"  # noqa: S608
    [(refund_id,)] = world.query(f"{found} AND kind = 'refund'")
    world.control(f"refunds/{refund_id}/fail", {})
    until(
        lambda: world.query(f"{found} AND kind = 'refund_failure'") != [],
        "the refund is known to have bounced",
    )
    settle: dict[str, Any] = {"payment_id": payment_id, "reason": "paid by cheque"}
    first = {**settle, "amount": {"minor_units": 4_000}, "idempotency_key": new_name("key")}
    answer = ask("OperationsService/SettleClientPayable", **first)
    assert answer["settled_amount"]["minor_units"] == "4000"
    assert answer["client_payable"]["minor_units"] == "6000"
    assert answer["payment"]["client_payable"] == answer["client_payable"]
    assert answer == ask("OperationsService/SettleClientPayable", **first)
    rest = ask("OperationsService/SettleClientPayable", **settle, idempotency_key=new_name("key"))
    assert rest["settled_amount"]["minor_units"] == "6000"
    assert rest["payment"]["state"] == "PAYMENT_STATE_REFUNDED"
    nothing = ask.refused(
        "OperationsService/SettleClientPayable", **settle, idempotency_key=new_name("key")
    )
    assert (nothing.code, nothing.reason) == ("FAILED_PRECONDITION", "AMOUNT_TOO_LARGE")


def let_pass_and_replace(world: World, ask: Caller) -> None:
    """A fraud warning is checked and dismissed; then the expert gets another account."""
    expert_id = world.ready_expert()
    payment = world.captured(expert_id)
    shown = {"payment_id": payment.payment_id}
    world.control(f"charges/{payment.charge_id}/early_fraud_warning", {})

    def freeze() -> str:
        payment = ask("PaymentService/GetPayment", **shown)["payment"]
        return str(payment.get("freeze", ""))

    until(lambda: freeze() == "PAYMENT_FREEZE_FRAUD_WARNING", "the warning is on record")
    release = {**shown, "reason": "the client was called", "idempotency_key": new_name("key")}
    released = ask("OperationsService/DismissFraudWarning", **release)
    assert released == ask("OperationsService/DismissFraudWarning", **release)
    assert freeze() == "PAYMENT_FREEZE_NONE"
    again = ask.refused(
        "OperationsService/DismissFraudWarning", **{**release, "idempotency_key": new_name("key")}
    )
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "FRAUD_WARNING_NOT_ACTIVE")

    former = ask("ExpertService/GetExpert", expert_id=expert_id)["expert"]["stripe_account_id"]
    replace = {"expert_id": expert_id, "reason": "lost", "idempotency_key": new_name("key")}
    in_use = ask.refused("ExpertService/ReplaceExpertAccount", **replace)
    assert (in_use.code, in_use.reason) == ("FAILED_PRECONDITION", "EXPERT_ACCOUNT_IN_USE")
    world.control(f"accounts/{former}/deauthorize", {})
    until(
        lambda: (
            ask("ExpertService/GetExpert", expert_id=expert_id)["expert"]["status"]
            == "EXPERT_STATUS_DEAUTHORIZED"
        ),
        "the expert has cut the account off",
    )
    replace["idempotency_key"] = new_name("key")
    replaced = ask("ExpertService/ReplaceExpertAccount", **replace)
    assert replaced["expert"]["stripe_account_id"] != former
    assert replaced["onboarding_url"]


def watch(grpcurl: Grpcurl) -> None:
    """The feed never ends; the test checks what comes within two seconds."""
    method = "EventService/WatchEvents"
    done = grpcurl.run("-max-time", "2", "-d", "{}", method=f"{PACKAGE}.{method}")
    grpcurl.driven.add(method)
    assert "DeadlineExceeded" in done.stderr
    decoder, told, text = json.JSONDecoder(), [], done.stdout.strip()
    while text:
        one, end = decoder.raw_decode(text)
        told.append(one)
        text = text[end:].strip()
    assert told[0]["event"]["kind"] == "payment.initiated"
    assert len({one["cursor"] for one in told}) == len(told)


def in_days(days: int) -> str:
    """A time as JSON has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * 86_400))


def operate(world: World, ask: Caller) -> None:
    """What the gateway and operators call."""
    event_id = "evt_" + new_name("grpcurl").replace("-", "")
    body = json.dumps(an_event(event_id, "balance.available")).encode()
    signed = signature(body, WEBHOOK_SECRETS["STRIPE_WEBHOOK_SECRET"], int(time.time()))
    webhook = {
        "endpoint": "WEBHOOK_ENDPOINT_PLATFORM",
        "payload": base64.b64encode(body).decode(),
        "signature": signed,
    }
    assert ask("WebhookService/IngestEvent", **webhook) == {"event_id": event_id}
    assert ask("WebhookService/IngestEvent", **webhook)["duplicate"] is True
    forged = ask.refused("WebhookService/IngestEvent", **{**webhook, "signature": "t=1,v1=00"})
    assert (forged.code, forged.reason) == ("INVALID_ARGUMENT", "WEBHOOK_REFUSED")
    until(lambda: event_id in ignored_events(ask), "the event is ignored")
    again = ask.refused("OperationsService/RetryWebhookEvent", event_id=event_id)
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    done = ask("OperationsService/ListOperations", state="OPERATION_STATE_SUCCEEDED")["operations"]
    over: dict[str, Any] = {"operation_id": done[0]["operation_id"]}
    for settled in (
        ask.refused("OperationsService/ResumeOperation", **over),
        ask.refused("OperationsService/AbandonOperation", **over, reason="not wanted"),
    ):
        assert (settled.code, settled.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    ask("OperationsService/RunReconciliation")
    # Other tests of this stack may have left some.
    by_others = {"DISCREPANCY_KIND_REFUND_FAILED", "DISCREPANCY_KIND_ESCROW_UNDERFUNDED"}
    known = ask("OperationsService/ListDiscrepancies").get("discrepancies", [])
    assert {one["kind"] for one in known} <= by_others
    world.control("balance", {"amount": 500, "currency": "usd", "type": "adjustment"})
    ask("OperationsService/RunReconciliation")
    seen = ask("OperationsService/ListDiscrepancies", open_only=True)["discrepancies"]
    [found] = [one for one in seen if one["kind"] not in by_others]
    decided = {"discrepancy_id": found["discrepancy_id"], "reason": "Stripe's own correction"}
    assert ask("OperationsService/ResolveDiscrepancy", **decided)["discrepancy"]["resolved_by"]
    left = ask("OperationsService/ListDiscrepancies", open_only=True).get("discrepancies", [])
    assert found["discrepancy_id"] not in {one["discrepancy_id"] for one in left}
    unknown = ask.refused(
        "OperationsService/ResolveDiscrepancy", discrepancy_id=f"disc_{10**12}", reason="r"
    )
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "DISCREPANCY_NOT_FOUND")


def an_event(event_id: str, kind: str) -> dict[str, Any]:
    return {
        "id": event_id,
        "object": "event",
        "type": kind,
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": {"id": "ba_1", "object": "balance"}},
    }


def ignored_events(ask: Caller) -> list[str]:
    """All of them: the oldest come first, and others may have left many."""
    found: list[str] = []
    token = ""
    while True:
        page = ask(
            "OperationsService/ListWebhookEvents",
            state="WEBHOOK_EVENT_STATE_IGNORED",
            page_size=100,
            page_token=token,
        )
        found += [event["event_id"] for event in page.get("events", [])]
        token = page.get("next_page_token", "")
        if not token:
            return found
