"""Who calls: certificates and tokens, checked."""
