"""A packed staging array into pages of many layers, in place."""
