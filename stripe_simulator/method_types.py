"""With which payment methods an intent can be paid, and how a caller may narrow that.

Since 2026-09-30.endive `payment_method_types` is no parameter any more, only a field: Stripe
computes it. `allowed_payment_method_types` silently filters; where the parameter named a type that
did not fit, it was an error.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator.errors import invalid_parameter, refused
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

#: From this version on the parameter `payment_method_types` is refused.
REMOVED_IN = "2026-09-30"

#: Every type that Stripe's description names.
KNOWN = tuple(
    "acss_debit affirm afterpay_clearpay alipay alma amazon_pay au_becs_debit bacs_debit "
    "bancontact billie bizum blik boku_promptpay boleto capchase_pay card cashapp check_scan "
    "click_to_pay crypto customer_balance demo_pay duitnow dummy_auth_push dummy_passthrough_card "
    "edenred eps fpx gcash getbalance gift_card giropay gopay grabpay id_bank_transfer ideal "
    "kakao_pay klarna knet konbini kr_card kr_market kriya link mb_way mobilepay momo mondu "
    "multibanco naver_pay netbanking ng_bank ng_bank_transfer ng_card ng_market ng_ussd ng_wallet "
    "nz_bank_account octopus oxxo p24 paper_check pay_by_bank payco paynow paypal paypay payto pix "
    "promptpay qris rechnung revolut_pay samsung_pay satispay scalapay sepa_debit sequra shop_pay "
    "shopeepay sofort south_korea_market stripe_balance sunbit swish tamara test_pay touch_n_go "
    "truemoney twint upi us_bank_account us_cash_voucher vipps wechat_pay wero zip".split()
)


def enabled(simulation: Simulation) -> list[str]:
    """What the dashboard's payment method settings offer here: cards, or nothing."""
    return ["card"] if simulation.settings.card_payments_enabled else []


def read(call: Call) -> dict[str, Any]:
    """The fields of an intent that the parameters of a creation or an update set."""
    params = call.params
    check_version(call)
    allowed, named = params.get("allowed_payment_method_types"), params.get("payment_method_types")
    automatic = params.get("automatic_payment_methods")
    given = [
        name
        for name in (
            "allowed_payment_method_types",
            "automatic_payment_methods",
            "payment_method_types",
        )
        if params.get(name) is not None
    ]
    if len(given) > 1:
        raise refused(f"You may only specify one of these parameters: {', '.join(given)}.")
    if allowed is not None:
        return {
            "allowed_payment_method_types": allowed,
            "automatic_payment_methods": None,
            "payment_method_types": [one for one in enabled(call.simulation) if one in allowed],
        }
    if named is not None:
        for one in named:
            _check_fits(call.simulation, one)
        return {"automatic_payment_methods": None, "payment_method_types": named}
    if automatic is not None:
        return {
            "automatic_payment_methods": {"allow_redirects": "always", **automatic},
            "payment_method_types": _offered(call.simulation),
        }
    return {}


def chosen(call: Call) -> dict[str, Any]:
    """The fields of a new intent."""
    fields = {"allowed_payment_method_types": None, **read(call)}
    if "payment_method_types" not in fields:
        # The default since API version 2023-08-16.
        fields["automatic_payment_methods"] = {"allow_redirects": "always", "enabled": True}
        fields["payment_method_types"] = _offered(call.simulation)
    return fields


def check_version(call: Call) -> None:
    """The removed parameter, where the caller's version no longer has it."""
    if "payment_method_types" in call.params and call.api_version[:10] >= REMOVED_IN:
        raise invalid_parameter(
            "payment_method_types",
            "`payment_method_types` is no longer supported on this API version. Use dynamic "
            "payment methods, or `allowed_payment_method_types` to filter them.",
            code="payment_method_types_no_longer_supported",
        )


def check_payable(intent: Row) -> None:
    """A card cannot pay an intent that does not offer cards (the code is our guess)."""
    if "card" not in intent["payment_method_types"]:
        raise refused(
            "The PaymentMethod provided (card) is not allowed for this PaymentIntent. It accepts: "
            f"[{', '.join(intent['payment_method_types'])}].",
            code="payment_intent_incompatible_payment_method",
            param="payment_method",
        )


def _offered(simulation: Simulation) -> list[str]:
    offered = enabled(simulation)
    if not offered:
        raise refused(
            "No valid payment method types for this Payment Intent. Please ensure that you have "
            "activated payment methods compatible with your chosen currency in your dashboard."
        )
    return offered


def _check_fits(simulation: Simulation, one: str) -> None:
    if one not in enabled(simulation):
        raise refused(
            f'The payment method type "{one}" is invalid. Please ensure the provided type is '
            "activated in your dashboard and your account is enabled for any preview features "
            "that you are trying to use.",
            code="payment_intent_invalid_parameter",
            param="payment_method_types",
        )
