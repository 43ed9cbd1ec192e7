"""PaymentIntents: create, update, capture, cancel, and the end of an authorization's time.

Confirmation, with everything that a card may answer, is in `confirmation.py`. The statuses and
events are those of Stripe's lifecycle page; where only observation knows better, the comment or
the switch in `config.Settings` says so.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator import capture as capturing
from stripe_simulator import (
    charges,
    confirmation,
    currencies,
    method_types,
    payment_methods,
    regions,
    reviews,
)
from stripe_simulator.accounts import check_destination
from stripe_simulator.confirmation import unexpected_state
from stripe_simulator.errors import ApiError, no_such, parameter_missing, refused
from stripe_simulator.events import emit
from stripe_simulator.ids import scrambled
from stripe_simulator.rendering import plain
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row

CHANGEABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
FIXED_ONCE_CONFIRMED = {
    "amount",
    "application_fee_amount",
    "capture_method",
    "currency",
    "payment_method",
    "payment_method_data",
    "transfer_data",
}
#: Features of card payments for which Stripe must have made the account eligible.
CARD_FEATURES = (
    "request_extended_authorization",
    "request_incremental_authorization",
    "request_multicapture",
    "request_overcapture",
)
CANCELABLE = (
    "requires_payment_method",
    "requires_capture",
    "requires_confirmation",
    "requires_action",
    "processing",
)


def register(simulation: Simulation) -> None:
    simulation.due_handlers["expire_authorization"] = lambda id_: _expire(simulation, id_)
    simulation.on_rebuild.append(lambda: _schedule_all(simulation))
    _schedule_all(simulation)


def _schedule_all(simulation: Simulation) -> None:
    for charge in simulation.store.all("charge"):
        before = charges.capture_before(charge) if charge["payment_intent"] else None
        if before is not None and charges.is_open_authorization(charge):
            simulation.schedule(before, "expire_authorization", charge["id"])


def create(call: Call) -> Row:
    """POST /v1/payment_intents, confirmed at once with `confirm=true`."""
    simulation = call.simulation
    params = call.params
    amount, currency = params["amount"], params["currency"]
    _check_amount(simulation, amount, currency)
    transfer_data = _transfer_data(simulation, params, amount)
    _check_fee(params.get("application_fee_amount"), amount, transfer_data)
    _check_features(simulation, params)
    if params.get("on_behalf_of") is not None:
        check_destination(simulation, params["on_behalf_of"], "on_behalf_of")
    types = method_types.chosen(call)
    if not params.get("confirm"):
        for name in ("off_session", "error_on_requires_action", "return_url"):
            if params.get(name):
                raise refused(
                    f"The parameter `{name}` cannot be passed when creating a PaymentIntent "
                    "unless `confirm` is set to true.",
                    param=name,
                )
    id_ = simulation.new_id("pi_3")
    intent = simulation.store.insert(
        "payment_intent",
        {
            "id": id_,
            "object": "payment_intent",
            "amount": amount,
            "amount_capturable": 0,
            "amount_details": {"tip": {}},
            "amount_received": 0,
            "application": None,
            "application_fee_amount": params.get("application_fee_amount"),
            "canceled_at": None,
            "cancellation_reason": None,
            "capture_method": params.get("capture_method", "automatic_async"),
            "client_secret": _client_secret(simulation, id_),
            "confirmation_method": params.get("confirmation_method", "automatic"),
            "created": simulation.now(),
            "currency": currency,
            "customer": None,
            "customer_account": None,
            "description": params.get("description"),
            "excluded_payment_method_types": None,
            "last_payment_error": None,
            "latest_charge": None,
            "livemode": False,
            "managed_payments": {"enabled": False},
            "metadata": merged_metadata({}, params.get("metadata") or {}),
            "next_action": None,
            "on_behalf_of": params.get("on_behalf_of"),
            "payment_method": None,
            "payment_method_configuration_details": None,
            "payment_method_options": _method_options({}, params.get("payment_method_options")),
            "processing": None,
            "receipt_email": params.get("receipt_email"),
            "review": None,
            "setup_future_usage": params.get("setup_future_usage"),
            "shipping": params.get("shipping"),
            "source": None,
            "statement_descriptor": params.get("statement_descriptor"),
            "statement_descriptor_suffix": params.get("statement_descriptor_suffix"),
            "status": "requires_payment_method",
            "transfer_data": transfer_data,
            "transfer_group": params.get("transfer_group"),
            **types,
            "_account": call.account,
            "_authentication": None,
        },
    )
    method = _given_method(call)
    if method is not None:
        intent = simulation.store.change(
            "payment_intent", id_, payment_method=method["id"], status="requires_confirmation"
        )
    simulation.effect(
        "intent_created",
        id_,
        payment_intent=id_,
        amount=amount,
        currency=currency,
        metadata=intent["metadata"],
    )
    # Its snapshot is from before the confirmation even with confirm=true.
    emit(simulation, "payment_intent.created", intent)
    if params.get("confirm"):
        return confirmation.confirm_intent(call, intent)
    return intent


def _client_secret(simulation: Simulation, id_: str) -> str:
    return f"{id_}_secret_{scrambled(f'{simulation.ids.seed}:{id_}', 25)}"


def _given_method(call: Call) -> Row | None:
    return payment_methods.resolve(
        call.simulation,
        call.account,
        call.get("payment_method"),
        call.get("payment_method_data"),
    )


def _check_amount(simulation: Simulation, amount: int, currency: str) -> None:
    settles_in = currencies.settlement(currency, simulation.config.settlement_currencies)
    currencies.check_charge_amount(amount, currency, settles_in)


def _transfer_data(
    simulation: Simulation, params: dict[str, Any], amount: int
) -> dict[str, Any] | None:
    given: dict[str, Any] | None = params.get("transfer_data")
    if given is None:
        return None
    check_destination(simulation, given["destination"], "transfer_data[destination]")
    regions.check_destination_charge(
        simulation.config.country,
        simulation.store.require("account", given["destination"]),
        params.get("on_behalf_of"),
    )
    if "amount" in given and params.get("application_fee_amount") is not None:
        raise refused(
            "You cannot pass both `application_fee_amount` and `transfer_data[amount]`.",
            param="transfer_data[amount]",
        )
    if given.get("amount", 0) > amount:
        raise refused(
            "The transfer amount must be less than or equal to the amount of the payment.",
            code="amount_too_large",
            param="transfer_data[amount]",
        )
    return dict(given)


def _check_fee(fee: int | None, amount: int, transfer_data: dict[str, Any] | None) -> None:
    """An application fee needs somebody to take it from, and may not exceed the payment."""
    if fee is None:
        return
    if transfer_data is None:
        raise refused(
            "Can only apply an application_fee_amount when the PaymentIntent is attempting a "
            "direct payment (using an OAuth key or Stripe-Account header) or destination payment "
            "(using `transfer_data[destination]`).",
            param="application_fee_amount",
        )
    if fee > amount:
        raise refused(
            "The application fee must be less than or equal to the amount of the payment.",
            code="amount_too_large",
            param="application_fee_amount",
        )


def _check_features(simulation: Simulation, params: dict[str, Any]) -> None:
    """Refuses an account that Stripe has not made eligible, for `if_available` as well."""
    card = (params.get("payment_method_options") or {}).get("card") or {}
    asked = [name for name in CARD_FEATURES if card.get(name) == "if_available"]
    if asked and not simulation.settings.extended_authorization_eligible:
        raise refused(
            "This account is not eligible for the requested card features. See "
            "https://stripe.com/docs/payments/flexible-payments for more details.",
            param=f"payment_method_options[card][{asked[0]}]",
        )


def _method_options(current: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    card = {
        "installments": None,
        "mandate_options": None,
        "network": None,
        "request_three_d_secure": "automatic",
        **(current.get("card") or {}),
        **((given or {}).get("card") or {}),
    }
    return {"card": card}


def retrieve(call: Call) -> Row:
    return _visible(call)


def _visible(call: Call) -> Row:
    """The intent of the path; a publishable key must show the client secret as well."""
    intent = call.object("payment_intent", "intent")
    if call.publishable:
        secret = call.get("client_secret")
        if secret is None:
            raise parameter_missing("client_secret")
        if secret != intent["client_secret"]:
            raise ApiError(
                400,
                f"The client_secret provided does not match any associated PaymentIntent ({secret}"
                ").",
                code="payment_intent_invalid_parameter",
                param="client_secret",
            )
    return intent


def update(call: Call) -> Row:
    """POST /v1/payment_intents/:id. There is no event for it (Stripe has none)."""
    simulation = call.simulation
    intent = _visible(call)
    params = call.params
    fixed = sorted(FIXED_ONCE_CONFIRMED & set(params))
    if fixed and intent["status"] not in CHANGEABLE:
        raise unexpected_state(
            simulation,
            intent,
            f"This PaymentIntent's {fixed[0]} could not be updated because it has a status of "
            f"{intent['status']}. You may only update the {fixed[0]} of a PaymentIntent with one "
            f"of the following statuses: {', '.join(CHANGEABLE)}.",
        )
    changes: dict[str, Any] = {
        name: params[name]
        for name in (
            "application_fee_amount",
            "capture_method",
            "currency",
            "description",
            "receipt_email",
            "setup_future_usage",
            "shipping",
            "statement_descriptor",
            "statement_descriptor_suffix",
            "transfer_group",
        )
        if name in params
    }
    changes.update(method_types.read(call))
    amount: int = params["amount"] if "amount" in params else intent["amount"]
    currency: str = changes["currency"] if "currency" in changes else intent["currency"]
    if {"amount", "currency"} & set(params):
        _check_amount(simulation, amount, currency)
        changes["amount"] = amount
    transfer_data = intent["transfer_data"]
    if "transfer_data" in params:
        if transfer_data is None:
            raise refused(
                "You cannot add `transfer_data` to a PaymentIntent that was created without it.",
                param="transfer_data",
            )
        transfer_data = changes["transfer_data"] = {**transfer_data, **params["transfer_data"]}
    _check_fee(
        changes.get("application_fee_amount", intent["application_fee_amount"]),
        amount,
        transfer_data,
    )
    if "metadata" in params:
        changes["metadata"] = merged_metadata(intent["metadata"], params["metadata"])
    if "payment_method_options" in params:
        _check_features(simulation, params)
        changes["payment_method_options"] = _method_options(
            intent["payment_method_options"], params["payment_method_options"]
        )
    method = _given_method(call)
    if method is not None:
        changes.update(
            payment_method=method["id"], status="requires_confirmation", next_action=None
        )
    return simulation.store.change("payment_intent", intent["id"], **changes)


def confirm(call: Call) -> Row:
    return confirmation.confirm_intent(call, _visible(call))


def capture(call: Call) -> Row:
    """POST /v1/payment_intents/:id/capture: once, in whole or in part."""
    simulation = call.simulation
    intent = call.object("payment_intent", "intent")
    params = call.params
    if intent["status"] == "succeeded":
        raise unexpected_state(
            simulation,
            intent,
            "This PaymentIntent could not be captured because it has already been captured.",
        )
    if intent["status"] != "requires_capture":
        raise unexpected_state(
            simulation,
            intent,
            "This PaymentIntent could not be captured because it has a status of "
            f"{intent['status']}. Only a PaymentIntent with one of the following statuses may be "
            "captured: requires_capture.",
        )
    amount: int = intent["amount_capturable"]
    if "amount_to_capture" in params:
        amount = params["amount_to_capture"]
    if amount == 0:
        raise refused(
            "Invalid value: amount_to_capture must be greater than or equal to 1 (you passed 0).",
            code="parameter_invalid_integer",
            param="amount",
            payment_intent=plain(simulation, intent),
        )
    currencies.check_step(amount, intent["currency"], "amount_to_capture")
    if amount > intent["amount_capturable"]:
        raise refused(
            f"The provided capture amount of {currencies.formatted(amount, intent['currency'])} "
            "is greater than the capturable amount of "
            f"{currencies.formatted(intent['amount_capturable'], intent['currency'])}.",
            code="amount_too_large",
            param="amount_to_capture",
            payment_intent=plain(simulation, intent),
        )
    settles_in = currencies.settlement(intent["currency"], simulation.config.settlement_currencies)
    currencies.check_minimum(amount, intent["currency"], settles_in, "amount_to_capture")
    if params.get("final_capture") is False:
        raise refused(
            "final_capture=false needs multicapture, which is not available for this payment.",
            param="final_capture",
        )
    transfer_data = intent["transfer_data"]
    fee = intent["application_fee_amount"]
    if "application_fee_amount" in params:
        fee = params["application_fee_amount"]
        _check_fee(fee, amount, transfer_data)
    elif fee is not None:
        # "Capped at the total amount captured" (the SDK's description).
        fee = min(fee, amount)
    if transfer_data is not None:
        # An account that lost its capability after authorization: refused alike (our guess).
        check_destination(simulation, transfer_data["destination"], "transfer_data[destination]")
    transfer_amount = _capture_transfer_amount(params, transfer_data, amount)
    changes: dict[str, Any] = {
        name: params[name]
        for name in ("statement_descriptor", "statement_descriptor_suffix")
        if name in params
    }
    if "metadata" in params:
        changes["metadata"] = merged_metadata(intent["metadata"], params["metadata"])
    charge = simulation.store.require("charge", intent["latest_charge"])
    captured = capturing.take(simulation, charge, amount, fee, transfer_amount)
    intent = simulation.store.change(
        "payment_intent",
        intent["id"],
        amount_capturable=0,
        amount_received=amount,
        application_fee_amount=fee,
        status="succeeded",
        **changes,
    )
    capturing.emit_money_events(simulation, captured)
    emit(simulation, "charge.captured", captured.charge)
    charge = capturing.let_cardholder_react(simulation, captured.charge)
    emit(simulation, "payment_intent.succeeded", intent)
    if simulation.settings.charge_updated_on_capture:
        # Stripe shows no request for it: the balance transaction is made by Stripe itself.
        with simulation.unasked():
            emit(simulation, "charge.updated", charge, {"balance_transaction": None})
    return intent


def _capture_transfer_amount(
    params: dict[str, Any], transfer_data: dict[str, Any] | None, amount: int
) -> int | None:
    given = params.get("transfer_data")
    if given is not None:
        if transfer_data is None:
            raise refused(
                "You cannot provide `transfer_data` when capturing a PaymentIntent that was "
                "created without a destination.",
                param="transfer_data",
            )
        if given["amount"] > amount:
            raise refused(
                "The transfer amount must be less than or equal to the captured amount.",
                code="amount_too_large",
                param="transfer_data[amount]",
            )
        chosen: int = given["amount"]
        return chosen
    if transfer_data is None or "amount" not in transfer_data:
        return None
    return min(amount, int(transfer_data["amount"]))


def cancel(call: Call) -> Row:
    """POST /v1/payment_intents/:id/cancel; an authorization is released."""
    simulation = call.simulation
    intent = call.object("payment_intent", "intent")
    if intent["status"] not in CANCELABLE:
        raise unexpected_state(
            simulation,
            intent,
            f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}. "
            "Only a PaymentIntent with one of the following statuses may be canceled: "
            f"{', '.join(CANCELABLE)}.",
        )
    held = intent["status"] == "requires_capture"
    intent = _cancel(simulation, intent, call.get("cancellation_reason"))
    emit(simulation, "payment_intent.canceled", intent)
    if held:
        charge = simulation.store.require("charge", intent["latest_charge"])
        reviews.close_of(simulation, charges.release(simulation, charge), "canceled")
    simulation.effect(
        "canceled",
        intent["id"],
        payment_intent=intent["id"],
        amount=intent["amount"],
        currency=intent["currency"],
        metadata=intent["metadata"],
    )
    return intent


def _cancel(simulation: Simulation, intent: Row, reason: str | None) -> Row:
    return simulation.store.change(
        "payment_intent",
        intent["id"],
        amount_capturable=0,
        canceled_at=simulation.now(),
        cancellation_reason=reason,
        next_action=None,
        status="canceled",
        _authentication=None,
    )


def _expire(simulation: Simulation, charge_id: str) -> None:
    """The clock has passed `capture_before`: the hold falls away without anybody asking."""
    charge = simulation.store.get("charge", charge_id)
    if charge is None or not charges.is_open_authorization(charge):
        return
    intent = simulation.store.require("payment_intent", charge["payment_intent"])
    if intent["status"] != "requires_capture" or intent["latest_charge"] != charge_id:
        return
    charge = charges.release(simulation, charge)
    emit(simulation, "charge.expired", charge)
    intent = _cancel(simulation, intent, "expired")
    emit(simulation, "payment_intent.canceled", intent)
    simulation.effect(
        "expired",
        intent["id"],
        payment_intent=intent["id"],
        amount=intent["amount"],
        currency=intent["currency"],
        metadata=intent["metadata"],
    )


def by_client_secret(simulation: Simulation, secret: str) -> Row | None:
    """The intent that a client secret belongs to, for the hosted page."""
    id_ = secret.partition("_secret_")[0]
    intent = simulation.store.get("payment_intent", id_)
    return intent if intent is not None and intent["client_secret"] == secret else None


def require_intent(simulation: Simulation, id_: str) -> Row:
    intent = simulation.store.get("payment_intent", id_)
    if intent is None:
        raise no_such("payment_intent", id_, "intent", in_path=True)
    return intent
