"""What a running process says about itself: metrics, traces, logs. Never loads jax."""
