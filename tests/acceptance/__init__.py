"""A package, so that its stack ends with its last test and not with the session."""
