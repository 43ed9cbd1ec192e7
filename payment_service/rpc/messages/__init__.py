"""Converts domain values to the messages of the contract and back: a module for each proto."""
