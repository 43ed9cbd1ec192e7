"""Escrow payments on Stripe Connect: an internal gRPC service over PostgreSQL."""
