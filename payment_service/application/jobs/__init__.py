"""Background jobs. Every replica runs all of them; rows are claimed, so work is done once."""
