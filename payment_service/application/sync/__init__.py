"""Fetching an object from Stripe and applying it to our records."""
