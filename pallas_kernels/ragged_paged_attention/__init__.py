"""Prefill attention: chunks of several rows' prompts, flattened, over paged contexts."""
