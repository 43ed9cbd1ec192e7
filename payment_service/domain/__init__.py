"""The rules of the escrow: pure standard library, no I/O, no clock of its own."""
