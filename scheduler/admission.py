"""Whether a request may still be served in time, and when to ask again if not.

Pure: what is expected comes from the caller, who asks when a request comes, and again when it is
its turn. Nobody is refused where nobody waits: that would help no one.
"""

import zlib
from dataclasses import dataclass

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.errors import OverloadedError

LEAST_RETRY_S, MOST_RETRY_S = 0.05, 30.0
JITTER = 0.25  # of a delay, so that those refused together do not come back together


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many may wait, and for what."""

    max_waiting: int
    max_waiting_per_tenant: int
    ttft_s: float | None  # None: no promise
    honours_deadlines: bool

    @classmethod
    def of(cls, section: SchedulerSection) -> "Limits":
        """Returns what the config says."""
        queue, slo = section.queue, section.slo
        per_tenant = queue.max_waiting_per_tenant
        return cls(
            max_waiting=queue.max_waiting,
            max_waiting_per_tenant=queue.max_waiting if per_tenant is None else per_tenant,
            ttft_s=slo.ttft_s,
            honours_deadlines=slo.deadlines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What awaits one request."""

    num_waiting: int  # of all tenants
    num_of_tenant: int  # that wait
    num_ahead: int  # that will go before it
    interval_s: float  # between two that go, as measured or predicted
    service_s: float  # from its turn to its first token: an instance's queue, and its prefill
    busy_s: float  # of that, the queue
    waited_s: float = 0.0  # so far

    @property
    def wait_s(self) -> float:
        """Seconds from now in which others are served."""
        return self.num_ahead * self.interval_s + self.busy_s

    @property
    def ttft_s(self) -> float:
        """Seconds from its arrival to its first token."""
        return self.waited_s + self.num_ahead * self.interval_s + self.service_s


def refusal(
    outlook: Outlook, limits: Limits, *, name: str, time_left_s: float | None
) -> OverloadedError | None:
    """Returns why a request is refused now, with a delay after which to ask again; None: it is not.

    Args:
      outlook: What awaits it.
      limits: What is allowed.
      name: Of the request: it decides the jitter.
      time_left_s: Until its client's deadline; None: there is none, or it does not count.
    """
    promise = limits.ttft_s
    if promise is not None and outlook.wait_s > 0 and outlook.ttft_s > promise:
        return _refused(
            "slo",
            f"the first token is expected after {outlook.ttft_s:.2f} s, allowed: {promise} s "
            "(scheduler.slo.ttft_s)",
            outlook.ttft_s - promise,
            name,
        )
    left_s, rest_s = time_left_s, outlook.ttft_s - outlook.waited_s
    if left_s is not None and outlook.wait_s > 0 and rest_s > left_s:
        return _refused(
            "deadline",
            f"the first token is expected in {rest_s:.2f} s, allowed: {max(0.0, left_s):.2f} s, "
            "what the call's deadline leaves",
            rest_s - left_s,
            name,
        )
    return None


def no_place(outlook: Outlook, limits: Limits, *, name: str) -> OverloadedError | None:
    """Returns why a request may not wait; None: it may. Arguments as of `refusal`."""
    bounds = (
        ("waiting", outlook.num_waiting, limits.max_waiting, "max_waiting"),
        ("tenant", outlook.num_of_tenant, limits.max_waiting_per_tenant, "max_waiting_per_tenant"),
    )
    for reason, found, most, key in bounds:
        if found >= most:
            whose = "of this tenant " if reason == "tenant" else ""
            return _refused(
                reason,
                f"{found} requests {whose}wait, allowed: {most} (scheduler.queue.{key})",
                max(1, found // 2) * outlook.interval_s,
                name,
            )
    return None


def _refused(reason: str, text: str, after_s: float, name: str) -> OverloadedError:
    draw = zlib.crc32(name.encode()) / 2**32
    after_s = min(MOST_RETRY_S, max(LEAST_RETRY_S, after_s)) * (1 + JITTER * draw)
    return OverloadedError(
        f"{text}; try again in {after_s:.2f} s", reason=reason, retry_after_s=after_s
    )
