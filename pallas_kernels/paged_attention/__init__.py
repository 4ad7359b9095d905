"""Decode attention: one new token per row over its paged context."""
