"""Stripe behind the domain's port: one module for each of Stripe's resources."""
