"""Eight emulated CPU devices, strict dtypes, quick compilation; before jax is used.

Tests spend most of their time in XLA's compiler, on tiny programs that run once. So XLA neither
optimises them nor emits its fusions through MLIR, here and in the processes that tests start.
`compiled_for_speed` gives back optimisation; the demo compiles in all as users do, and so do tests
on an accelerator (`JAX_PLATFORMS=cuda`).
"""

import gc
import os
import pathlib
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_DISABLE_MOST_OPTIMIZATIONS", "1" if os.environ["JAX_PLATFORMS"] == "cpu" else "0"
)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_extra_options="
    "xla_cpu_disable_new_fusion_emitters,xla_cpu_disable_loop_unrolling,xla_cpu_optimize_for_size"
)

import hypothesis
import jax
import pytest

CACHE = pathlib.Path(__file__).parent.parent / "build" / "jax_cache"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The same examples on every machine, however slow it is.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests stay: no collection needs to look at them again


@pytest.fixture
def compiled_for_speed() -> Iterator[None]:
    """Compiles what is first run here optimised, as users do, but for the emitter of fusions."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    is_quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0"
    jax.config.update("jax_disable_most_optimizations", is_quick)
