"""Other engines on the same checkpoint. Each script runs in whichever Python has that engine."""
