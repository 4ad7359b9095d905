"""What a person can say about a simulation."""

from dataclasses import dataclass

from memserve_jax.core.cost_model import CostModel

# Of a step, and of a prefill as the scheduler sees it: roughly an 8B model on an accelerator.
COST = CostModel(fixed_s=5e-3, s_per_token=3e-5, s_per_token_pair=1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """One run of `memserve bench simulate`."""

    parts: tuple[str, ...]
    policy: str = "min_ttft"  # whose bounds are checked
    seed: int = 0
    quick: bool = False  # fewer requests
    cost: CostModel = COST
    trace: str | None = None  # a file, for the part `trace`
    trace_requests: int = 1000  # of it, from the beginning; all are held in memory
