"""Confirming an intent: the card is asked, with or without 3D Secure.

Outcomes follow the table of transitions in Stripe's lifecycle page and what a live-probed
simulator recorded: an approval leaves `requires_capture` (or captures at once), a decline answers
402 and leaves a failed charge, 3D Secure leaves `requires_action`.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator import capture as capturing
from stripe_simulator import charges, method_types, payment_methods
from stripe_simulator.accounts import check_destination
from stripe_simulator.errors import ApiError, documentation_url, refused
from stripe_simulator.events import emit
from stripe_simulator.rendering import plain
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

AUTHENTICATION_FAILED = (
    "The provided PaymentMethod has failed authentication. You can provide payment_method_data or "
    "a new PaymentMethod to attempt to fulfill this PaymentIntent again."
)
AUTHENTICATION_REQUIRED = "Your card was declined. This transaction requires authentication."


def unexpected_state(simulation: Simulation, intent: Row, message: str) -> ApiError:
    return refused(
        message,
        code="payment_intent_unexpected_state",
        payment_intent=plain(simulation, intent),
    )


def confirm_intent(call: Call, intent: Row) -> Row:
    """Confirm with the payment method given now, or the one set before."""
    simulation = call.simulation
    method_types.check_version(call)
    if intent["status"] in ("succeeded", "requires_capture"):
        raise unexpected_state(
            simulation,
            intent,
            "You cannot confirm this PaymentIntent because it has already succeeded after being "
            "previously confirmed.",
        )
    if intent["status"] not in (
        "requires_payment_method",
        "requires_confirmation",
        "requires_action",
    ):
        raise unexpected_state(
            simulation,
            intent,
            f"You cannot confirm this PaymentIntent because it has a status of {intent['status']}."
            " Only a PaymentIntent with one of the following statuses may be confirmed: "
            "requires_confirmation, requires_action.",
        )
    method = payment_methods.resolve(
        simulation, call.account, call.get("payment_method"), call.get("payment_method_data")
    )
    if method is None and intent["payment_method"] is not None:
        method = simulation.store.require("payment_method", intent["payment_method"])
    if method is None:
        raise unexpected_state(
            simulation,
            intent,
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can "
            "either update the PaymentIntent with a payment method and then confirm it again, or "
            "confirm it again directly with a payment method or ConfirmationToken.",
        )
    method_types.check_payable(intent)
    _require_return_url(call, intent)
    if intent["transfer_data"] is not None:
        check_destination(
            simulation, intent["transfer_data"]["destination"], "transfer_data[destination]"
        )
    changes: dict[str, Any] = {
        name: call.params[name]
        for name in ("receipt_email", "setup_future_usage", "shipping")
        if name in call.params
    }
    given_options = (call.get("payment_method_options") or {}).get("card")
    if given_options:
        card_options = {**intent["payment_method_options"]["card"], **given_options}
        changes["payment_method_options"] = {"card": card_options}
    if call.get("capture_method") is not None:
        changes["capture_method"] = call.params["capture_method"]
    intent = simulation.store.change(
        "payment_intent",
        intent["id"],
        payment_method=method["id"],
        next_action=None,
        status="requires_confirmation",
        _authentication=None,
        **changes,
    )
    card = payment_methods.card_of(method)
    if card.three_d_secure or _asks_for_challenge(intent):
        if call.get("off_session") or call.get("error_on_requires_action"):
            raise _authentication_required(simulation, intent, method)
        return _challenge(simulation, intent, call.get("return_url"))
    return authorize(simulation, intent, method, authenticated=False)


def _asks_for_challenge(intent: Row) -> bool:
    options = (intent["payment_method_options"] or {}).get("card") or {}
    return options.get("request_three_d_secure") in ("any", "challenge")


def _require_return_url(call: Call, intent: Row) -> None:
    automatic = intent["automatic_payment_methods"]
    if (
        automatic is not None
        and automatic["enabled"]
        and automatic["allow_redirects"] == "always"
        and call.get("return_url") is None
        and not call.publishable
    ):
        raise refused(
            "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. "
            "Because some of these payment methods might redirect your customer off of your page, "
            "you must provide a `return_url`. If you don't want to accept redirect-based payment "
            "methods, set `automatic_payment_methods[enabled]` to `true` and "
            "`automatic_payment_methods[allow_redirects]` to `never` when creating Setup Intents "
            "and Payment Intents.",
            payment_intent=plain(call.simulation, intent),
        )


def authorize(simulation: Simulation, intent: Row, method: Row, *, authenticated: bool) -> Row:
    """Ask the card network; a decline raises, having left its trace."""
    card = payment_methods.card_of(method)
    if card.decline is not None:
        raise _declined(simulation, intent, method)
    manual = intent["capture_method"] == "manual"
    charge = charges.build(simulation, intent, method, manual=manual, authenticated=authenticated)
    simulation.effect(
        "authorized",
        charge["id"],
        payment_intent=intent["id"],
        amount=intent["amount"],
        currency=intent["currency"],
        metadata=intent["metadata"],
    )
    if not manual:
        return _capture_now(simulation, intent, method, charge)
    before = charges.capture_before(charge)
    assert before is not None
    simulation.schedule(before, "expire_authorization", charge["id"])
    intent = simulation.store.change(
        "payment_intent",
        intent["id"],
        amount_capturable=intent["amount"],
        last_payment_error=None,
        latest_charge=charge["id"],
        payment_method=method["id"],
        next_action=None,
        status="requires_capture",
        _authentication=None,
    )
    emit(simulation, "charge.succeeded", charge)
    emit(simulation, "payment_intent.amount_capturable_updated", intent)
    return intent


def _capture_now(simulation: Simulation, intent: Row, method: Row, charge: Row) -> Row:
    """capture_method automatic, or automatic_async with its later charge.updated."""
    transfer_data = intent["transfer_data"]
    captured = capturing.take(
        simulation,
        charge,
        intent["amount"],
        intent["application_fee_amount"],
        transfer_data.get("amount") if transfer_data else None,
    )
    intent = simulation.store.change(
        "payment_intent",
        intent["id"],
        amount_received=intent["amount"],
        last_payment_error=None,
        latest_charge=charge["id"],
        payment_method=method["id"],
        next_action=None,
        status="succeeded",
        _authentication=None,
    )
    capturing.emit_money_events(simulation, captured)
    if intent["capture_method"] != "automatic_async":
        emit(simulation, "charge.succeeded", captured.charge)
        capturing.let_cardholder_react(simulation, captured.charge)
        emit(simulation, "payment_intent.succeeded", intent)
        return intent
    # Asynchronous capture reports success before the money's objects exist (documented).
    unset: dict[str, Any] = {"balance_transaction": None}
    if transfer_data is not None:
        unset.update(transfer=None, application_fee=None)
    emit(simulation, "charge.succeeded", captured.charge, **unset)
    charge = capturing.let_cardholder_react(simulation, captured.charge)
    emit(simulation, "payment_intent.succeeded", intent)
    emit(simulation, "charge.updated", charge, unset)
    return intent


def _declined(simulation: Simulation, intent: Row, method: Row) -> ApiError:
    """Leave the failed charge and the intent ready for another card; 402."""
    decline = payment_methods.card_of(method).decline
    assert decline is not None
    code, decline_code, message = decline
    charge = charges.build_failed(simulation, intent, method, message)
    details: dict[str, Any] = {"charge": charge["id"]}
    if decline_code is not None:
        details["decline_code"] = decline_code
    if charge["outcome"]["advice_code"]:
        details["advice_code"] = charge["outcome"]["advice_code"]
    intent = _fail(
        simulation, intent, method, "card_error", code, message, details, latest_charge=charge["id"]
    )
    simulation.effect(
        "declined",
        charge["id"],
        payment_intent=intent["id"],
        amount=intent["amount"],
        currency=intent["currency"],
        metadata=intent["metadata"],
    )
    emit(simulation, "charge.failed", charge)
    emit(simulation, "payment_intent.payment_failed", intent)
    return _card_error(simulation, intent, method, code, message, details)


def _authentication_required(simulation: Simulation, intent: Row, method: Row) -> ApiError:
    """Nobody is there to answer the challenge; no charge is made."""
    code = "authentication_required"
    details = {"decline_code": code}
    intent = _fail(simulation, intent, method, "card_error", code, AUTHENTICATION_REQUIRED, details)
    emit(simulation, "payment_intent.payment_failed", intent)
    return _card_error(simulation, intent, method, code, AUTHENTICATION_REQUIRED, details)


def _fail(
    simulation: Simulation,
    intent: Row,
    method: Row,
    type_: str,
    code: str,
    message: str,
    details: dict[str, Any],
    **changes: Any,
) -> Row:
    return simulation.store.change(
        "payment_intent",
        intent["id"],
        last_payment_error={
            **details,
            "code": code,
            "doc_url": documentation_url(code),
            "message": message,
            "payment_method": plain(simulation, method),
            "type": type_,
        },
        next_action=None,
        payment_method=None,
        status="requires_payment_method",
        _authentication=None,
        **changes,
    )


def _card_error(
    simulation: Simulation,
    intent: Row,
    method: Row,
    code: str,
    message: str,
    details: dict[str, Any],
) -> ApiError:
    return ApiError(
        402,
        message,
        kind="card_error",
        code=code,
        keeps_changes=True,
        payment_intent=plain(simulation, intent),
        payment_method=plain(simulation, method),
        **details,
    )


def challenge_url(simulation: Simulation, intent: Row) -> str:
    return (
        f"{simulation.base_url}/_pages/three_d_secure/{intent['id']}"
        f"?client_secret={intent['client_secret']}"
    )


def _challenge(simulation: Simulation, intent: Row, return_url: str | None) -> Row:
    """3D Secure: with a return_url the customer is redirected, else Stripe.js opens the page."""
    url = challenge_url(simulation, intent)
    if return_url is not None:
        action: dict[str, Any] = {
            "redirect_to_url": {"return_url": return_url, "url": url},
            "type": "redirect_to_url",
        }
    else:
        action = {
            "type": "use_stripe_sdk",
            "use_stripe_sdk": {
                "source": simulation.new_id("src_1"),
                "stripe_js": url,
                "type": "three_d_secure_redirect",
            },
        }
    intent = simulation.store.change(
        "payment_intent",
        intent["id"],
        next_action=action,
        status="requires_action",
        _authentication={"return_url": return_url},
    )
    emit(simulation, "payment_intent.requires_action", intent)
    return intent


def finish_challenge(simulation: Simulation, intent: Row, passed: bool) -> Row:
    """The customer's answer on the challenge page; nobody gets an HTTP error for it."""
    if intent["status"] != "requires_action":
        return intent
    method = simulation.store.require("payment_method", intent["payment_method"])
    if passed:
        try:
            with_trace = authorize(simulation, intent, method, authenticated=True)
        except ApiError as error:
            if not error.keeps_changes:
                raise
            return simulation.store.require("payment_intent", intent["id"])
        return with_trace
    intent = _fail(
        simulation,
        intent,
        method,
        "invalid_request_error",
        "payment_intent_authentication_failure",
        AUTHENTICATION_FAILED,
        {},
    )
    emit(simulation, "payment_intent.payment_failed", intent)
    return intent
