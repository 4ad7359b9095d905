"""MemServe in JAX: context caching and disaggregated inference over an elastic KV pool."""
