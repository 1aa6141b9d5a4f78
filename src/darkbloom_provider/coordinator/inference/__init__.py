"""A consumer's request, from its body to the last byte of its answer."""
