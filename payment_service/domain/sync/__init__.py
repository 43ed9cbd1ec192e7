"""From a snapshot of Stripe's objects to the changes that follow from it."""
