"""The parameters of the endpoints under /v2, as data.

Bodies are JSON there. They are read by the same kinds as forms, so a value is checked alike.
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
    ListOf,
    Metadata,
    NotSimulated,
    Required,
    Text,
    unsimulated,
)

CONFIGURATIONS = ("customer", "merchant", "recipient")
INCLUDABLE = (
    *(f"configuration.{name}" for name in CONFIGURATIONS),
    "defaults",
    "future_requirements",
    "identity",
    "requirements",
)
INCLUDE: Fields = {"include": ListOf(Choice(INCLUDABLE))}
# What Stripe's own libraries add to a request that a thin event causes.
USAGE: Fields = {"usage": Anything()}
DESTINATION_LIST: Fields = {
    "limit": Integer(1, 100),
    "page": Text(),
    "include": ListOf(Choice(("webhook_endpoint.url", "webhook_endpoint.signing_secret"))),
}
PAGING: Fields = {"limit": Integer(1, 100), "page": Text()}
REQUESTED = Hash({"requested": Required(Boolean())})

ACCOUNT: Fields = {
    **INCLUDE,
    "configuration": Hash(
        {
            "recipient": Hash(
                {
                    # In an update only: false takes the configuration away.
                    "applied": NotSimulated(),
                    "capabilities": Hash(
                        {
                            "stripe_balance": Hash({"stripe_transfers": REQUESTED}),
                            **unsimulated("bank_accounts", "cards"),
                        }
                    ),
                }
            ),
            **unsimulated("customer", "merchant"),
        }
    ),
    "contact_email": Text(),
    "contact_phone": Text(),
    "dashboard": Choice(("express", "full", "none")),
    "defaults": Hash(
        {
            "currency": CurrencyCode(),
            "locales": ListOf(Text()),
            "profile": Hash(
                {
                    "business_url": Text(),
                    "doing_business_as": Text(),
                    "product_description": Text(),
                }
            ),
            "responsibilities": Hash(
                {
                    "fees_collector": Required(
                        Choice(
                            ("application", "application_custom", "application_express", "stripe")
                        )
                    ),
                    "losses_collector": Required(Choice(("application", "stripe"))),
                }
            ),
        }
    ),
    "display_name": Text(),
    "identity": Hash(
        {
            "business_details": Hash({"registered_name": Text(), "phone": Text()}),
            "country": Text(2),
            "entity_type": Choice(("company", "government_entity", "individual", "non_profit")),
            "individual": Hash(
                {"email": Text(), "given_name": Text(), "phone": Text(), "surname": Text()}
            ),
            **unsimulated("attestations"),
        }
    ),
    "metadata": Metadata(),
    **unsimulated("account_token"),
}
ACCOUNT_RETRIEVE: Fields = {**INCLUDE, **USAGE}
ACCOUNT_CLOSE: Fields = {"applied_configurations": ListOf(Choice(CONFIGURATIONS))}
ACCOUNT_LIST: Fields = {
    **PAGING,
    "applied_configurations": ListOf(Choice(CONFIGURATIONS)),
    "closed": Boolean(),
}

FLOW = Hash(
    {
        "collection_options": Hash(
            {
                "fields": Choice(("currently_due", "eventually_due")),
                "future_requirements": Choice(("include", "omit")),
            }
        ),
        "refresh_url": Required(Text()),
        "return_url": Text(),
    }
)
ACCOUNT_LINK_CREATE: Fields = {
    "account": Required(Text()),
    "use_case": Required(
        Hash(
            {
                "account_onboarding": FLOW,
                "account_update": FLOW,
                "type": Required(Choice(("account_onboarding", "account_update"))),
            }
        )
    ),
}

MOMENT = Text(40)
EVENT_LIST: Fields = {
    **PAGING,
    "created": Hash(dict.fromkeys(("gt", "gte", "lt", "lte"), MOMENT)),
    "object_id": Text(),
    "types": ListOf(Text(), 20),
}
