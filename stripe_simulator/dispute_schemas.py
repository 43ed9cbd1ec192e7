"""The parameters and reasons of disputes and early fraud warnings, as data like `schemas`."""

from __future__ import annotations

from stripe_simulator.forms import Boolean, Choice, Fields, Hash, Metadata, Text, unsimulated
from stripe_simulator.schemas import CREATED_LIST, EXPAND

REASONS = (
    "bank_cannot_process",
    "check_returned",
    "credit_not_processed",
    "customer_initiated",
    "debit_not_authorized",
    "duplicate",
    "fraudulent",
    "general",
    "incorrect_account_details",
    "insufficient_funds",
    "noncompliant",
    "product_not_received",
    "product_unacceptable",
    "subscription_canceled",
    "unrecognized",
)
# What can be said or shown about a payment; files are named by the ids that uploads gave them.
EVIDENCE_FILES = (
    "cancellation_policy",
    "customer_communication",
    "customer_signature",
    "duplicate_charge_documentation",
    "receipt",
    "refund_policy",
    "service_documentation",
    "shipping_documentation",
    "uncategorized_file",
)
EVIDENCE_LINES = (
    "billing_address",
    "customer_email_address",
    "customer_name",
    "customer_purchase_ip",
    "duplicate_charge_id",
    "service_date",
    "shipping_address",
    "shipping_carrier",
    "shipping_date",
    "shipping_tracking_number",
)
EVIDENCE_TEXTS = (
    "access_activity_log",
    "cancellation_policy_disclosure",
    "cancellation_rebuttal",
    "duplicate_charge_explanation",
    "product_description",
    "refund_policy_disclosure",
    "refund_refusal_explanation",
    "uncategorized_text",
)
EVIDENCE_NAMES = (*EVIDENCE_FILES, *EVIDENCE_LINES, *EVIDENCE_TEXTS)
EVIDENCE: Fields = {
    **dict.fromkeys((*EVIDENCE_FILES, *EVIDENCE_LINES), Text(clearable=True)),
    **dict.fromkeys(EVIDENCE_TEXTS, Text(20_000, clearable=True)),
    **unsimulated("appeal", "enhanced_evidence"),
}
DISPUTE_UPDATE: Fields = {
    **EXPAND,
    "evidence": Hash(EVIDENCE),
    "intended_submission_method": Choice(
        ("manual", "prefer_manual", "prefer_smart_disputes", "smart_disputes")
    ),
    "metadata": Metadata(),
    "submit": Boolean(),
}
# Disputes and early fraud warnings are found by the same filters.
OF_A_CHARGE_LIST: Fields = {**CREATED_LIST, "charge": Text(), "payment_intent": Text()}
