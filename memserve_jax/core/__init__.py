"""Words, config, errors, prompt tree, tokenizer: what every floor shares. Never loads jax."""
