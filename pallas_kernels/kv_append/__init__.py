"""New tokens' K and V into their slots, in place."""
