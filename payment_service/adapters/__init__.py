"""The outside, behind the domain's ports: PostgreSQL and Stripe."""
