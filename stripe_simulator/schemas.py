"""The parameters of every endpoint, as data.

Each schema names every parameter that the `stripe` package knows for its endpoint (a test holds
them against each other): what is simulated is typed, what is only shown again is `Anything`, and
what we would have to ignore is `NotSimulated` and refused aloud.
"""

from __future__ import annotations

from stripe_simulator.forms import (
    Anything,
    Boolean,
    Choice,
    CurrencyCode,
    Fields,
    Hash,
    Integer,
    Kind,
    ListOf,
    Metadata,
    NotSimulated,
    Required,
    Text,
    TimeRange,
    unsimulated,
)
from stripe_simulator.method_types import KNOWN as KNOWN_TYPES

EXPAND: Fields = {"expand": ListOf(Text())}
PAGING: Fields = {
    **EXPAND,
    "ending_before": Text(),
    "limit": Integer(1, 100),
    "starting_after": Text(),
}
AMOUNT = Integer(1)
FEE = Integer(0)


def _accepted(*names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, Anything())


ADDRESS = Hash(
    dict.fromkeys(
        ("city", "country", "line1", "line2", "postal_code", "state"), Text(clearable=True)
    ),
    clearable=True,
)
SHIPPING = Hash(
    {
        "address": Required(ADDRESS),
        "carrier": Text(clearable=True),
        "name": Required(Text()),
        "phone": Text(clearable=True),
        "tracking_number": Text(clearable=True),
    },
    clearable=True,
)

# Payment methods ---------------------------------------------------------------------------------

CARD = Hash(
    {
        "cvc": Text(4, clearable=True),
        "exp_month": Integer(),
        "exp_year": Integer(),
        "number": Text(30),
        "token": Text(),
        **unsimulated("networks"),
    }
)
PAYMENT_METHOD_FIELDS: Fields = {
    "allow_redisplay": Choice(("always", "limited", "unspecified")),
    "billing_details": Hash(
        {
            "address": ADDRESS,
            "email": Text(clearable=True),
            "name": Text(clearable=True),
            "phone": Text(clearable=True),
            "tax_id": Text(clearable=True),
        }
    ),
    "card": CARD,
    "metadata": Metadata(),
    "type": Required(Choice(("card",))),
}
# Stripe.js sends these along; they change nothing.
STRIPE_JS: Fields = _accepted(
    "client_attribution_metadata", "guid", "muid", "payment_user_agent", "pasted_fields",
    "referrer", "sid", "time_on_page", "radar_options",
)  # fmt: skip
PAYMENT_METHOD_CREATE: Fields = {**PAYMENT_METHOD_FIELDS, **STRIPE_JS, **EXPAND}

# Payment intents ---------------------------------------------------------------------------------

IF_AVAILABLE = Choice(("if_available", "never"), clearable=True)
CARD_OPTIONS = Hash(
    {
        "capture_method": Choice(("manual",), clearable=True),
        "cvc_token": NotSimulated(),
        "installments": NotSimulated(),
        "mandate_options": NotSimulated(),
        "moto": Boolean(),
        "network": Text(clearable=True),
        "request_extended_authorization": IF_AVAILABLE,
        "request_incremental_authorization": IF_AVAILABLE,
        "request_multicapture": IF_AVAILABLE,
        "request_overcapture": IF_AVAILABLE,
        "request_partial_authorization": IF_AVAILABLE,
        "request_three_d_secure": Choice(("any", "automatic", "challenge")),
        "require_cvc_recollection": Boolean(),
        "setup_credential_usage": Anything(),
        "setup_future_usage": Choice(("none", "off_session", "on_session"), clearable=True),
        "statement_descriptor_suffix_kana": Text(clearable=True),
        "statement_descriptor_suffix_kanji": Text(clearable=True),
        "stored_credential_usage": Anything(),
        "three_d_secure": NotSimulated(),
    },
    clearable=True,
)
SETUP_FUTURE_USAGE = Choice(("off_session", "on_session"), clearable=True)
METHOD_PARAMS: Fields = {
    "payment_method": Text(),
    "payment_method_data": Hash({**PAYMENT_METHOD_FIELDS, **STRIPE_JS}),
    "payment_method_options": Hash({"card": CARD_OPTIONS}),
}
CONFIRM_PARAMS: Fields = {
    "error_on_requires_action": Boolean(),
    "off_session": Choice(("true", "false", "one_off", "recurring")),
    "return_url": Text(),
    "use_stripe_sdk": Boolean(),
    **unsimulated("confirmation_token", "mandate", "mandate_data"),
}
INTENT_UNSIMULATED: Fields = unsimulated(
    "amount_details",
    "customer",
    "customer_account",
    "excluded_payment_method_types",
    "hooks",
    "payment_details",
    "payment_method_configuration",
)
# A parameter before 2026-09-30.endive; `method_types.py` refuses it from then on.
OLD_TYPES: Fields = {"payment_method_types": ListOf(Text())}
INTENT_COMMON: Fields = {
    **INTENT_UNSIMULATED,
    **METHOD_PARAMS,
    **EXPAND,
    "allowed_payment_method_types": ListOf(Choice(KNOWN_TYPES)),
    "capture_method": Choice(("automatic", "automatic_async", "manual")),
    "description": Text(1000, clearable=True),
    "metadata": Metadata(),
    "receipt_email": Text(clearable=True),
    "setup_future_usage": SETUP_FUTURE_USAGE,
    "shipping": SHIPPING,
    "statement_descriptor": Text(22, clearable=True),
    "statement_descriptor_suffix": Text(22, clearable=True),
    "transfer_group": Text(),
}
INTENT_CREATE: Fields = {
    **INTENT_COMMON,
    **CONFIRM_PARAMS,
    "amount": Required(AMOUNT),
    "application_fee_amount": FEE,
    "automatic_payment_methods": Hash(
        {"allow_redirects": Choice(("always", "never")), "enabled": Required(Boolean())}
    ),
    "confirm": Boolean(),
    "confirmation_method": Choice(("automatic", "manual")),
    "currency": Required(CurrencyCode()),
    "on_behalf_of": Text(),
    **OLD_TYPES,
    "radar_options": Anything(),
    "transfer_data": Hash({"amount": AMOUNT, "destination": Required(Text())}),
}
INTENT_UPDATE: Fields = {
    **INTENT_COMMON,
    "amount": AMOUNT,
    "application_fee_amount": Integer(0, clearable=True),
    "client_secret": Text(),
    "currency": CurrencyCode(),
    **OLD_TYPES,
    "transfer_data": Hash({"amount": AMOUNT}),
}
INTENT_CONFIRM: Fields = {
    **METHOD_PARAMS,
    **CONFIRM_PARAMS,
    **EXPAND,
    **STRIPE_JS,
    **OLD_TYPES,
    "capture_method": Choice(("automatic", "automatic_async", "manual")),
    "client_secret": Text(),
    "expected_payment_method_type": Anything(),
    "receipt_email": Text(clearable=True),
    "setup_future_usage": SETUP_FUTURE_USAGE,
    "shipping": SHIPPING,
    **unsimulated(
        "allowed_payment_method_types",
        "amount_details",
        "amount_to_confirm",
        "excluded_payment_method_types",
        "hooks",
        "payment_details",
    ),
}
INTENT_RETRIEVE: Fields = {**EXPAND, "client_secret": Text()}
INTENT_CAPTURE: Fields = {
    **EXPAND,
    "amount_to_capture": Integer(0),
    "application_fee_amount": FEE,
    "final_capture": Boolean(),
    "metadata": Metadata(),
    "statement_descriptor": Text(22, clearable=True),
    "statement_descriptor_suffix": Text(22, clearable=True),
    "transfer_data": Hash({"amount": Required(AMOUNT)}),
    **unsimulated("amount_details", "hooks", "payment_details"),
}
INTENT_CANCEL: Fields = {
    **EXPAND,
    "cancellation_reason": Choice(
        ("duplicate", "fraudulent", "requested_by_customer", "abandoned")
    ),
}

# Charges, refunds, transfers, fees ---------------------------------------------------------------

CHARGE_UPDATE: Fields = {
    **EXPAND,
    "description": Text(clearable=True),
    "metadata": Metadata(),
    "receipt_email": Text(clearable=True),
    "shipping": SHIPPING,
    **unsimulated("customer", "fraud_details", "transfer_group"),
}
REFUND_CREATE: Fields = {
    **EXPAND,
    "amount": AMOUNT,
    "charge": Text(),
    "metadata": Metadata(),
    "payment_intent": Text(),
    "reason": Choice(("duplicate", "fraudulent", "requested_by_customer")),
    "refund_application_fee": Boolean(),
    "reverse_transfer": Boolean(),
    **unsimulated("currency", "customer", "instructions_email", "origin"),
}
METADATA_UPDATE: Fields = {**EXPAND, "metadata": Metadata()}
TRANSFER_CREATE: Fields = {
    **EXPAND,
    "amount": AMOUNT,
    "currency": Required(CurrencyCode()),
    "description": Text(clearable=True),
    "destination": Required(Text()),
    "metadata": Metadata(),
    "source_transaction": Text(),
    "source_type": Choice(("bank_account", "card", "fpx")),
    "transfer_group": Text(),
}
TRANSFER_UPDATE: Fields = {**METADATA_UPDATE, "description": Text(clearable=True)}
REVERSAL_CREATE: Fields = {
    **EXPAND,
    "amount": AMOUNT,
    "description": Text(clearable=True),
    "metadata": Metadata(),
    "refund_application_fee": Boolean(),
}
FEE_REFUND_CREATE: Fields = {**EXPAND, "amount": AMOUNT, "metadata": Metadata()}

PAYOUT_CREATE: Fields = {
    **EXPAND,
    "amount": Required(AMOUNT),
    "currency": Required(CurrencyCode()),
    "description": Text(clearable=True),
    "metadata": Metadata(),
    "method": Choice(("standard",)),
    "source_type": Choice(("card",)),
    "statement_descriptor": Text(22),
    **unsimulated("destination", "payout_method"),
}

# Accounts ----------------------------------------------------------------------------------------

PERSON = Hash(
    {
        "address": ADDRESS,
        "dob": Hash(dict.fromkeys(("day", "month", "year"), Required(Integer())), clearable=True),
        "email": Text(),
        "first_name": Text(),
        "id_number": Text(),
        "last_name": Text(),
        "metadata": Metadata(),
        "phone": Text(),
        "ssn_last_4": Text(4),
    }
)
COMPANY = Hash(
    {"address": ADDRESS, "name": Text(), "phone": Text(), "tax_id": Text(), "vat_id": Text()}
)
BUSINESS_PROFILE = Hash(
    {
        "mcc": Text(4),
        "name": Text(),
        "product_description": Text(),
        "support_address": ADDRESS,
        "support_email": Text(),
        "support_phone": Text(),
        "support_url": Text(clearable=True),
        "url": Text(),
    }
)
SETTINGS = Hash(
    {
        "branding": Hash({"primary_color": Text(), "secondary_color": Text()}),
        "dashboard": Hash({"display_name": Text(), "timezone": Text()}),
        "payments": Hash({"statement_descriptor": Text(22)}),
        "payouts": Hash(
            {
                "debit_negative_balances": Boolean(),
                "schedule": Hash(
                    {
                        "delay_days": Integer(0, 31),
                        "interval": Choice(("daily", "manual", "monthly", "weekly")),
                        "monthly_anchor": Integer(1, 31),
                        "weekly_anchor": Text(),
                    }
                ),
                "statement_descriptor": Text(22),
            }
        ),
    }
)
REQUESTED = Hash({"requested": Boolean()})
CAPABILITIES = Hash({"card_payments": REQUESTED, "transfers": REQUESTED})
BUSINESS_TYPE = Choice(("company", "government_entity", "individual", "non_profit"))
ACCOUNT_COMMON: Fields = {
    **EXPAND,
    "business_profile": BUSINESS_PROFILE,
    "business_type": BUSINESS_TYPE,
    "capabilities": CAPABILITIES,
    "company": COMPANY,
    "default_currency": CurrencyCode(),
    "email": Text(),
    "individual": PERSON,
    "metadata": Metadata(),
    "settings": SETTINGS,
    "tos_acceptance": Hash(
        {
            "date": Integer(),
            "ip": Text(),
            "service_agreement": Choice(("full", "recipient")),
            "user_agent": Text(),
        }
    ),
    **unsimulated("account_token", "documents", "external_account", "groups"),
}
ACCOUNT_CREATE: Fields = {
    **ACCOUNT_COMMON,
    "controller": Hash(
        {
            "fees": Hash({"payer": Choice(("account", "application"))}),
            "losses": Hash({"payments": Choice(("application", "stripe"))}),
            "requirement_collection": Choice(("application", "stripe")),
            "stripe_dashboard": Hash({"type": Choice(("express", "full", "none"))}),
        }
    ),
    "country": Text(2),
    "type": Choice(("custom", "express", "standard")),
}
ACCOUNT_LINK_CREATE: Fields = {
    **EXPAND,
    "account": Required(Text()),
    "collect": Choice(("currently_due", "eventually_due")),
    "collection_options": Hash(
        {
            "fields": Choice(("currently_due", "eventually_due")),
            "future_requirements": Choice(("include", "omit")),
        }
    ),
    "refresh_url": Text(),
    "return_url": Text(),
    "type": Required(Choice(("account_onboarding", "account_update"))),
}
CAPABILITY_UPDATE: Fields = {**EXPAND, "requested": Boolean()}

# Lists -------------------------------------------------------------------------------------------

SEARCH: Fields = {**EXPAND, "limit": Integer(1, 100), "page": Text(), "query": Required(Text())}
CREATED_LIST: Fields = {**PAGING, "created": TimeRange()}
INTENT_LIST: Fields = {**CREATED_LIST, **unsimulated("customer", "customer_account")}
CHARGE_LIST: Fields = {
    **CREATED_LIST,
    "payment_intent": Text(),
    "transfer_group": Text(),
    **unsimulated("customer"),
}
REFUND_LIST: Fields = {**CREATED_LIST, "charge": Text(), "payment_intent": Text()}
TRANSFER_LIST: Fields = {**CREATED_LIST, "destination": Text(), "transfer_group": Text()}
FEE_LIST: Fields = {**CREATED_LIST, "charge": Text()}
BALANCE_TRANSACTION_LIST: Fields = {
    **CREATED_LIST,
    "currency": CurrencyCode(),
    "source": Text(),
    "type": Text(),
    **unsimulated("payout"),
}
PAYOUT_LIST: Fields = {
    **CREATED_LIST,
    "destination": Text(),
    "status": Choice(("canceled", "failed", "in_transit", "paid", "pending")),
    **unsimulated("arrival_date"),
}
EVENT_LIST: Fields = {
    **CREATED_LIST,
    "delivery_success": Boolean(),
    "type": Text(),
    "types": ListOf(Text(), 20),
}
