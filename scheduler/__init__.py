"""The global scheduler: front door, routing, prompt trees, cluster. Never loads jax."""
