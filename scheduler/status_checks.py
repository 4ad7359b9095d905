"""What no instance can say of itself. Every report is checked before anything is made of it.

Checked is what routing, admission and operators go by; nothing is kept of a report that fails.
"""

import math

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import Tier
from memserve_jax.proto import memserve_pb2 as pb

MAX_STATUS_BYTES = 1 << 16
MAX_TOKENS_PER_S = 1e9
MAX_REQUESTS = 1 << 20  # waiting or running at one instance
MAX_QUEUED_TOKENS = 1 << 40
MAX_TENSOR_PARALLELISM = 1 << 12
STATES = ("serving", "draining", "down")


def check_status(status: pb.InstanceStatus) -> None:
    """Does nothing if `status` can be true.

    Raises:
      InvalidRequestError: a count, rate or word in it is impossible; names the field.
    """
    size = status.ByteSize()
    if size > MAX_STATUS_BYTES:
        raise InvalidRequestError("status", f"{size} bytes", f"at most {MAX_STATUS_BYTES} bytes")
    counts = (
        ("running", MAX_REQUESTS),
        ("waiting", MAX_REQUESTS),
        ("queued_prefill_tokens", MAX_QUEUED_TOKENS),
        ("tensor_parallelism", MAX_TENSOR_PARALLELISM),
    )
    for field, most in counts:
        value = getattr(status, field)
        if value > most:
            raise InvalidRequestError(f"status.{field}", value, f"at most {most}")
    if status.state not in STATES:
        raise InvalidRequestError("status.state", status.state, f"one of {', '.join(STATES)}")
    if status.max_context_tokens == 1:  # 0: not said
        raise InvalidRequestError("status.max_context_tokens", 1, "at least 2")
    _check_number("status.prefill_tokens_per_s", status.prefill_tokens_per_s, MAX_TOKENS_PER_S)
    for index, transport in enumerate(status.transports):
        _check_number(f"status.transports[{index}].seconds", transport.seconds, math.inf)
    _check_tiers(status)


def _check_number(field: str, value: float, most: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= most):
        limit = "" if math.isinf(most) else f", at most {most:g}"
        raise InvalidRequestError(field, value, f"a finite number >= 0{limit}")


def _check_tiers(status: pb.InstanceStatus) -> None:
    seen: set[str] = set()
    names = [tier.value for tier in Tier]
    for index, tier in enumerate(status.tiers):
        field = f"status.tiers[{index}]"
        if tier.tier not in names or tier.tier in seen:
            raise InvalidRequestError(
                f"{field}.tier", tier.tier, f"each of {', '.join(names)} once"
            )
        seen.add(tier.tier)
        for name in ("free_blocks", "leased_blocks", "indexed_blocks", "pinned_blocks"):
            value = getattr(tier, name)
            if value > tier.num_blocks:
                raise InvalidRequestError(
                    f"{field}.{name}", value, f"at most the tier's {tier.num_blocks} blocks"
                )
