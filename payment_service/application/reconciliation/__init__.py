"""Comparing payments, the ledger and Stripe, and re-checking what differed."""
