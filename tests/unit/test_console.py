"""The console's own rules: amounts, the picture of the money, refusals in sentences, settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from console import shown
from console.actions import ACTIONS, Draft
from console.core import Refused, roles_of
from console.picture import WIDTH, draw
from console.refusals import NOT_OURS, REMEDIES, explain
from console.settings import Settings, load_settings
from console.site import discrepancy_page
from marketplace.payments.v1 import errors_pb2, operations_pb2, payments_pb2
from marketplace.payments.v1.money_pb2 import Money
from payment_service.domain import money as domain
from sidecar.settings import RefusedSettings

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook"


def usd(units: int) -> Money:
    return Money(minor_units=units, currency_code="USD")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


# ---- amounts ----


@pytest.mark.parametrize("currency", sorted(domain.CURRENCIES | domain.FORMER_CURRENCIES))
def test_amounts_are_shown_as_the_service_shows_them(currency: str) -> None:
    for units in (0, 5, 1_234, -1_050, 10**12):
        theirs = domain.format_money(domain.Money(units, currency))
        assert shown.money(Money(minor_units=units, currency_code=currency)) == theirs


@pytest.mark.parametrize(
    ("text", "currency", "units"),
    [
        ("12.34", "USD", 1_234),
        (" 12 ", "USD", 1_200),
        ("0.5", "USD", 50),
        ("1001", "JPY", 1_001),
        ("1.05", "KWD", 1_050),
    ],
)
def test_an_amount_is_read_in_major_units(text: str, currency: str, units: int) -> None:
    assert shown.typed(text, currency).minor_units == units


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        *[
            (text, "USD")
            for text in ("", "-1", "1,50", "1.234", "0", "0.00", "1e3", "٣", "1.", ".5")
        ],
        ("1.5", "JPY"),
        ("1.0505", "KWD"),
        ("9" * 13, "USD"),
    ],
)
def test_what_is_no_amount_is_refused_with_an_example(text: str, currency: str) -> None:
    with pytest.raises(shown.WrongAmount, match=r"example|more than zero"):
        shown.typed(text, currency)


def test_an_enum_is_shown_in_words_and_an_unknown_value_too() -> None:
    payment = payments_pb2.Payment(state=payments_pb2.PAYMENT_STATE_IN_ESCROW)
    assert shown.words(payment, "state") == "In escrow"
    assert shown.words(payment, "waiting_for") == ""
    payment.MergeFromString(b"\x30\x63")  # state = 99, of a later release
    assert "99" in shown.words(payment, "state")


# ---- the picture ----


@pytest.mark.parametrize(
    "amounts",
    [
        {"held_amount": 10_000},
        {"net_expert_amount": 9_000, "net_commission": 1_000},
        {"held_amount": 1, "net_expert_amount": 90_000_000, "net_commission": 10_000_000},
        {"held_amount": 8_000, "returned_amount": 2_000, "client_payable": 2_000},
        {"held_amount": 8_000, "returned_amount": 2_000, "pending_refund_amount": 1_500},
        {"refunded_amount": 4_000, "lost_amount": 6_000},
        {"lost_amount": 10_000, "net_expert_amount": -500, "held_amount": 500},
    ],
)
def test_the_parts_fill_the_bar_and_sum_to_the_charge(amounts: dict[str, int]) -> None:
    payment = payments_pb2.Payment(amount=usd(10_000))
    for name, units in amounts.items():
        getattr(payment, name).CopyFrom(usd(units))
    picture = draw(payment)
    assert sum(part.width for part in picture.parts) == WIDTH
    assert all(part.width > 0 for part in picture.parts)
    inside = ("client_payable", "pending_refund_amount")
    expected = sum(units for name, units in amounts.items() if name not in inside)
    assert sum(part.amount.minor_units for part in picture.parts) == expected
    assert picture.charged.minor_units == expected


def test_a_payment_without_money_says_whose_it_is() -> None:
    picture = draw(payments_pb2.Payment(amount=usd(10_000)))
    assert (picture.parts, picture.note) == (
        [],
        "Nothing is secured yet: all the money is the client's.",
    )


# ---- refusals and actions ----


def test_every_reason_of_the_contract_has_a_sentence() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert reasons - NOT_OURS == set(REMEDIES)


def test_a_refusal_shows_amounts_in_major_units() -> None:
    facts = {"requested": "50000", "available": "10000", "currency": "JPY"}
    refused = Refused("FAILED_PRECONDITION", "AMOUNT_TOO_LARGE", "too much", facts)
    explained = explain(refused)
    assert explained.sentence == "Too much."
    assert ("Requested", "50000 JPY") in explained.facts


def test_a_version_that_changed_is_never_tried_again() -> None:
    assert not Refused("ABORTED", "VERSION_MISMATCH").may_repeat
    assert Refused("UNAVAILABLE", "OUTCOME_UNKNOWN").may_repeat
    assert not Refused("FAILED_PRECONDITION", "WRONG_STATE").may_repeat


def test_every_action_has_roles_and_asks_only_what_its_request_takes() -> None:
    for action in ACTIONS.values():
        assert roles_of(action.rpc), action.name
        request: Any = action.build(_draft(action.name))
        fields = request.DESCRIPTOR.fields_by_name
        assert ("validate_only" in fields) is action.has_preview, action.name
        assert ("amount" in fields) is action.takes_amount, action.name
        if "idempotency_key" in fields:
            assert request.idempotency_key == "key", action.name
        if "expected_version" in fields:
            assert request.expected_version == 7, action.name


def _draft(name: str) -> Draft:
    return Draft("id", "key", "why", usd(5), currency="USD", version=7, flag=name == "capture")


def test_every_discrepancy_leads_to_a_page_of_the_runbook() -> None:
    for number in operations_pb2.DiscrepancyKind.values()[1:]:
        page = discrepancy_page(operations_pb2.Discrepancy(kind=number))
        assert (RUNBOOK / page).is_file(), page


# ---- settings ----

TLS = {"CONSOLE_TLS_CERTIFICATE_FILE": "/tls/tls.crt", "CONSOLE_TLS_KEY_FILE": "/tls/tls.key"}
REACHED = {"CONSOLE_HOST": "10.0.0.5", "CONSOLE_PUBLIC_URL": "https://console.example.com"}


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CONSOLE_HOST": "10.0.0.5"}, "tokens would come to it in plain text"),
        ({"CONSOLE_HOST": "0.0.0.0"}, "CONSOLE_TLS_BY_MESH=true if a service mesh"),  # noqa: S104
        ({"CONSOLE_HOST": "::"}, "can be reached from other machines"),
        ({"CONSOLE_HOST": "10.0.0.5", **TLS}, "needs CONSOLE_PUBLIC_URL"),
        ({"CONSOLE_PUBLIC_URL": "https://console.example.com"}, "nothing encrypts"),
        ({**TLS, "CONSOLE_PUBLIC_URL": "http://console.example.com"}, "must be the https address"),
        ({**TLS, "CONSOLE_PUBLIC_URL": "https://a.example.com/x"}, "without a path"),
        ({**TLS, "CONSOLE_PUBLIC_URL": "https://u:p@a.example.com"}, "must be the https address"),
        ({"CONSOLE_TLS_KEY_FILE": "/tls/tls.key"}, "belong together"),
        ({**TLS, "CONSOLE_TLS_BY_MESH": "true"}, "exclude each other"),
        ({"CORE_ADDRESS": "10.0.0.9:50051"}, "in plain text: set CORE_TLS_CA_FILE"),
        ({"CORE_TLS_SERVER_NAME": "payments"}, "needs CORE_TLS_CA_FILE"),
        ({"CORE_TLS_CA_FILE": "/ca", "CORE_TLS_BY_MESH": "true"}, "exclude each other"),
        ({"CORE_ADDRESS": "nowhere"}, "must be host:port of the core"),
        ({"CONSOLE_SIGN_IN": "off", "ENVIRONMENT": "production"}, "needs CONSOLE_SIGN_IN=token"),
        ({"CONSOLE_SIGN_IN": "off", **TLS, **REACHED}, "it must be on loopback"),
        (
            {"CONSOLE_SIGN_IN": "off", "CORE_ADDRESS": "10.0.0.9:50051", "CORE_TLS_CA_FILE": "/ca"},
            "set CONSOLE_SIGN_IN=token",
        ),
        ({"CONSOLE_SIGN_IN": "maybe"}, "must be token, or off"),
        ({"CONSOLE_PORT": "0", "ENVIRONMENT": "production"}, "set a port"),
        ({"CONSOLE_PORT": "70000"}, "from 1 to 65535"),
        ({"CONSOLE_SESSION_SECONDS": "9999999"}, "from 60 to 86400"),
        ({"CONSOLE_CALL_SECONDS": "inf"}, "at most 300"),
        ({"CONSOLE_RUNBOOK_URL": "javascript:alert(1)"}, "must be the http or https address"),
        ({"CONSOLE_SIGNIN": "off"}, "did you mean CONSOLE_SIGN_IN?"),
        (
            {"ENVIRONMENT": "production", "STRIPE_SECRET_KEY": "sk_live_x"},
            "STRIPE_SECRET_KEY is a secret of the core's",
        ),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RefusedSettings) as refused:
        load_settings()
    assert sentence in str(refused.value)
    assert "sk_live_x" not in str(refused.value)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"CONSOLE_SIGN_IN": "off"},
        {**TLS, **REACHED},
        {"CONSOLE_TLS_BY_MESH": "true", **REACHED, "CORE_TLS_BY_MESH": "true"},
        {"ENVIRONMENT": "production", **TLS, **REACHED, "CORE_TLS_CA_FILE": "/ca"},
        {"CONSOLE_HOST": "::1"},
    ],
)
def test_right_settings_are_taken(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    load_settings()


def test_a_start_with_wrong_settings_ends_with_the_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "console"],
        env={"CONSOLE_HOST": "10.0.0.5", "PATH": "/usr/bin"},
        cwd=RUNBOOK.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("console: CONSOLE_HOST=10.0.0.5 can be reached")
    assert "Traceback" not in done.stderr
