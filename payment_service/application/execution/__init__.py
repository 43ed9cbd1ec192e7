"""Executing operations: one loop that sends, and a strategy for each kind of object."""
