"""The elastic memory pool of one instance: memory, index, transfer."""
