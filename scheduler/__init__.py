"""The global scheduler: front door, control plane, prompt trees, policies."""
