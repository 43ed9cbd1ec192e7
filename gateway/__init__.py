"""The one part of the payment service that the internet can reach.

It takes Stripe's webhooks and the browser's landing pages of onboarding, refuses cheaply what
can never be right, and hands the rest to the core over gRPC. It keeps no state and no secret of
Stripe's, so losing it loses nothing: Stripe comes again.
"""
