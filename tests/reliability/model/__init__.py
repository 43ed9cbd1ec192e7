"""The stateful model of the service: what it knows (`world`), its rules, and its invariants.

Each part extends the one before: world, events, Stripe's side, callers, clock, funds, account,
bank, convergence, machine.
"""
