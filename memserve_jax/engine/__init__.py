"""Steps: batches, jitted forward, sampling, hand-off."""
