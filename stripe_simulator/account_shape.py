"""The parts of an Account object, and how its standing follows from what was submitted."""

from __future__ import annotations

from typing import Any

from stripe_simulator.currencies import COUNTRY_CURRENCIES
from stripe_simulator.store import Row

CAPABILITIES = ("card_payments", "transfers")

NO_TERMS = {"date": None, "ip": None, "user_agent": None}

ADDRESS = ("city", "country", "line1", "line2", "postal_code", "state")

# What a fresh Express account still owes, by kind of business (as test accounts show it).
COMMON_REQUIREMENTS = (
    "business_profile.mcc",
    "business_profile.url",
    "external_account",
    "tos_acceptance.date",
    "tos_acceptance.ip",
)
INDIVIDUAL_REQUIREMENTS = (
    "individual.dob.day",
    "individual.dob.month",
    "individual.dob.year",
    "individual.first_name",
    "individual.last_name",
    "individual.ssn_last_4",
)
COMPANY_REQUIREMENTS = ("company.name", "company.tax_id", "representative.first_name",
                        "representative.last_name")  # fmt: skip


def requirements(**given: Any) -> dict[str, Any]:
    return {
        "alternatives": [],
        "current_deadline": None,
        "currently_due": [],
        "disabled_reason": None,
        "errors": [],
        "eventually_due": [],
        "past_due": [],
        "pending_verification": [],
        **given,
    }


def controller(type_: str | None, given: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The account's type and controller, from either way of asking.

    The pairs are Stripe's table of migration to controller properties; an account made by
    controller reads back `type: none`, a legacy Express one `fees.payer: application_express`.
    """
    payer, losses, collection, dashboard = {
        "express": ("application_express", "application", "stripe", "express"),
        "custom": ("application_custom", "application", "application", "none"),
        "standard": ("account", "stripe", "stripe", "full"),
    }[type_ or "standard"]
    if given is not None:
        payer = (given.get("fees") or {}).get("payer", payer)
        losses = (given.get("losses") or {}).get("payments", losses)
        collection = given.get("requirement_collection", collection)
        dashboard = (given.get("stripe_dashboard") or {}).get("type", dashboard)
        type_ = "none" if (dashboard, collection) != ("full", "stripe") else "standard"
    return type_ or "standard", {
        "fees": {"payer": payer},
        "is_controller": True,
        "losses": {"payments": losses},
        "requirement_collection": collection,
        "stripe_dashboard": {"type": dashboard},
        "type": "application",
    }


def is_express(account: Row) -> bool:
    dashboard: str = account["controller"]["stripe_dashboard"]["type"]
    return dashboard == "express"


def business_profile(given: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "annual_revenue": None,
        "estimated_worker_count": None,
        "mcc": None,
        "minority_owned_business_designation": None,
        "name": None,
        "product_description": None,
        "support_address": None,
        "support_email": None,
        "support_phone": None,
        "support_url": None,
        "url": None,
        **(given or {}),
    }


def settings(given: dict[str, Any] | None, current: dict[str, Any] | None = None) -> dict[str, Any]:
    shown = current or {
        "bacs_debit_payments": {"display_name": None, "service_user_number": None},
        "branding": {"icon": None, "logo": None, "primary_color": None, "secondary_color": None},
        "card_issuing": {"tos_acceptance": {"date": None, "ip": None}},
        "card_payments": {
            "decline_on": {"avs_failure": False, "cvc_failure": False},
            "statement_descriptor_prefix": None,
            "statement_descriptor_prefix_kana": None,
            "statement_descriptor_prefix_kanji": None,
        },
        "dashboard": {"display_name": None, "timezone": "Etc/UTC"},
        "invoices": {"default_account_tax_ids": None, "hosted_payment_method_save": None},
        "payments": {
            "statement_descriptor": None,
            "statement_descriptor_kana": None,
            "statement_descriptor_kanji": None,
        },
        "payouts": {
            "debit_negative_balances": True,
            "schedule": {"delay_days": 2, "interval": "daily"},
            "statement_descriptor": None,
        },
        "sepa_debit_payments": {},
    }
    for section, values in (given or {}).items():
        merged = {**shown[section], **(values or {})}
        if section == "payouts" and "schedule" in (values or {}):
            merged["schedule"] = {**shown[section]["schedule"], **values["schedule"]}
        shown = {**shown, section: merged}
    return shown


def person(id_: str, account: str, now: int) -> dict[str, Any]:
    return {
        "id": id_,
        "object": "person",
        "account": account,
        "address": dict.fromkeys(ADDRESS),
        "created": now,
        "dob": {"day": None, "month": None, "year": None},
        "email": None,
        "first_name": None,
        "future_requirements": _person_requirements(),
        "id_number_provided": False,
        "last_name": None,
        "metadata": {},
        "phone": None,
        "relationship": {
            "director": False,
            "executive": False,
            "owner": False,
            "percent_ownership": None,
            "representative": True,
            "title": None,
        },
        "requirements": _person_requirements(),
        "ssn_last_4_provided": False,
        "verification": {
            "additional_document": {
                "back": None,
                "details": None,
                "details_code": None,
                "front": None,
            },
            "details": None,
            "details_code": None,
            "document": {"back": None, "details": None, "details_code": None, "front": None},
            "status": "unverified",
        },
    }


def _person_requirements() -> dict[str, Any]:
    return {
        "alternatives": [],
        "currently_due": [],
        "errors": [],
        "eventually_due": [],
        "past_due": [],
        "pending_verification": [],
    }


def described_person(person: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A person with what was given; secrets such as an id number are only noted as provided."""
    shown = {**person}
    for name in ("email", "first_name", "last_name", "phone", "metadata"):
        if name in given:
            shown[name] = given[name]
    for name in ("address", "dob"):
        if given.get(name) is not None:
            shown[name] = {**person[name], **given[name]}
    shown["id_number_provided"] = person["id_number_provided"] or "id_number" in given
    shown["ssn_last_4_provided"] = person["ssn_last_4_provided"] or "ssn_last_4" in given
    return shown


def company() -> dict[str, Any]:
    return {
        "address": dict.fromkeys(ADDRESS),
        "directors_provided": False,
        "executives_provided": False,
        "name": None,
        "owners_provided": False,
        "phone": None,
        "tax_id_provided": False,
        "vat_id_provided": False,
        "verification": {
            "document": {"back": None, "details": None, "details_code": None, "front": None}
        },
    }


def described_company(company: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    shown = {**company}
    for name in ("name", "phone"):
        if name in given:
            shown[name] = given[name]
    if given.get("address") is not None:
        shown["address"] = {**company["address"], **given["address"]}
    shown["tax_id_provided"] = company["tax_id_provided"] or "tax_id" in given
    shown["vat_id_provided"] = company["vat_id_provided"] or "vat_id" in given
    return shown


def _due(account: Row) -> list[str]:
    """What a fresh account still has to give."""
    profile = account["business_profile"]
    due = [name for name in COMMON_REQUIREMENTS if not profile.get(name.partition(".")[2])]
    kind = account["business_type"]
    if kind is None:
        due.append("business_type")
    elif kind == "individual":
        individual = account.get("individual") or {}
        dob = individual.get("dob") or {}
        provided = {"ssn_last_4": individual.get("ssn_last_4_provided")}
        for name in INDIVIDUAL_REQUIREMENTS:
            field = name.split(".")[-1]
            if not (individual.get(field) or dob.get(field) or provided.get(field)):
                due.append(name)
    else:
        given = account.get("company") or {}
        due += [
            name
            for name in COMPANY_REQUIREMENTS
            if not (given.get(name.split(".")[-1]) and name.startswith("company."))
        ]
    return sorted(due)


def standing(account: Row) -> dict[str, Any]:
    """Everything that follows from the account's stage: what it may do and what it owes."""
    stage = account["_stage"]
    requested = [name for name, wanted in account["_requested"].items() if wanted]
    active = {
        "fresh": "inactive",
        "pending": "pending",
        "complete": "active",
        "restricted": "inactive",
    }[stage]
    capabilities = dict.fromkeys(requested, active)
    owed = requirements()
    charges = payouts = stage == "complete"
    if stage == "fresh":
        due = _due(account)
        reason = "requirements.past_due"
        owed = requirements(
            currently_due=due, eventually_due=due, past_due=due, disabled_reason=reason
        )
    elif stage == "pending":
        waiting = ["individual.verification.document"]
        if account["business_type"] not in (None, "individual"):
            waiting = ["company.verification.document"]
        owed = requirements(
            pending_verification=waiting, disabled_reason="requirements.pending_verification"
        )
    elif stage == "restricted":
        restriction = account["_restriction"] or {}
        capabilities.update(
            {n: v for n, v in (restriction.get("capabilities") or {}).items() if n in requested}
        )
        due = restriction.get("currently_due", ["individual.verification.document"])
        owed = requirements(
            currently_due=due,
            eventually_due=due,
            past_due=due,
            disabled_reason=restriction.get("disabled_reason", "requirements.past_due"),
        )
        charges = bool(restriction.get("charges_enabled", False))
        payouts = bool(restriction.get("payouts_enabled", False))
    later = requirements()
    if stage == "complete" and account.get("_announced"):
        owed, later = account["_announced"]["now"], account["_announced"]["later"]
    return {
        "capabilities": capabilities,
        "charges_enabled": charges and capabilities.get("card_payments") == "active",
        "payouts_enabled": payouts,
        "requirements": owed,
        "future_requirements": later,
    }


def capability(account: Row, name: str) -> Row:
    """A Capability object; what the account owes blocks every capability alike."""
    owed = account["requirements"]
    requested = bool(account["_requested"].get(name))
    status = account["capabilities"].get(name, "unrequested") if requested else "unrequested"
    shown = requirements()
    if requested and status != "active":
        shown = {**owed, "disabled_reason": _capability_reason(owed["disabled_reason"])}
    return {
        "id": name,
        "object": "capability",
        "account": account["id"],
        "future_requirements": requirements(),
        "requested": requested,
        "requested_at": account["_requested_at"].get(name),
        "requirements": shown,
        "status": status,
    }


def _capability_reason(reason: str | None) -> str | None:
    """An account's disabled_reason in the words that capabilities have for it."""
    if reason is None:
        return None
    return {
        "requirements.past_due": "requirements.fields_needed",
        "requirements.pending_verification": "pending.review",
        "platform_paused": "platform_paused",
    }.get(reason, "other")


def bank_account(id_: str, account: Row, currency: str | None = None) -> dict[str, Any]:
    """A test bank account, as the onboarding form attaches it; else in the country's currency."""
    return {
        "id": id_,
        "object": "bank_account",
        "account": account["id"],
        "account_holder_name": None,
        "account_holder_type": None,
        "account_type": None,
        "available_payout_methods": ["standard"],
        "bank_name": "STRIPE TEST BANK",
        "country": account["country"],
        "currency": currency or COUNTRY_CURRENCIES[account["country"]],
        "default_for_currency": True,
        "fingerprint": "1JWtPxqbdX5Gamtz",
        "future_requirements": _bank_requirements(),
        "last4": "6789",
        "metadata": {},
        "requirements": _bank_requirements(),
        "routing_number": "110000000",
        "status": "new",
    }


def _bank_requirements() -> dict[str, list[str]]:
    return {"currently_due": [], "errors": [], "past_due": [], "pending_verification": []}
