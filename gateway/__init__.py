"""The one part of the payment service that the internet can reach.

It takes Stripe's webhooks and the browser's landing pages of onboarding, refuses cheaply what
can never be right, and passes everything else to the core over gRPC. It keeps no state and no
secret of Stripe's, so losing it loses nothing: Stripe delivers again.
"""
