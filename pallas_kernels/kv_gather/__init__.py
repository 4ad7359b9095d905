"""Pages of many layers into one packed staging array."""
