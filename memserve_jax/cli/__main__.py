"""`python -m memserve_jax.cli`: the console script, for where it is not on the path."""

from memserve_jax.cli import main

main()
