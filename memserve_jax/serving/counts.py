"""What requests add to an instance's tally. Lives in the asyncio loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from memserve_jax.core.errors import MemServeError
from memserve_jax.engine.events import Tokens
from memserve_jax.proto.status import status_of
from memserve_jax.serving.engine_parts import Identity
from memserve_jax.serving.peers import Context, PeerError
from memserve_jax.telemetry import instance_metrics as metrics
from memserve_jax.telemetry.metric import Kind
from memserve_jax.telemetry.stream_meter import StreamHistograms, StreamMeter
from memserve_jax.telemetry.tally import Tally


class InstanceCounts:
    """Counts one instance's requests.

    Attributes:
      tally: What it counts into; others of the instance may, too.
    """

    def __init__(self, identity: Identity):
        counted = [
            metric
            for metric in metrics.INSTANCE_METRICS.values()
            if metric.kind is not Kind.GAUGE and metric not in metrics.FROM_STATUS
        ]
        self.tally = Tally(counted, prefix=(identity.instance, identity.role.value))
        self._queue = self.tally.histogram(metrics.QUEUE_TIME)
        self._prefill = self.tally.histogram(metrics.PREFILL_TIME)
        self._hand_off = self.tally.histogram(metrics.HANDOFF_TIME)
        self._histograms = StreamHistograms(
            first_token=self.tally.histogram(metrics.TIME_TO_FIRST_TOKEN),
            inter_token=self.tally.histogram(metrics.INTER_TOKEN_LATENCY),
            whole=self.tally.histogram(metrics.REQUEST_LATENCY),
        )

    def meter(self, arrival_s: float) -> StreamMeter:
        """Returns what measures the answer to a request that came at `arrival_s`."""
        return StreamMeter(self._histograms, arrival_s)

    def prefilled(self, arrival_s: float, queue_s: float, now_s: float) -> None:
        """Counts a prompt computed here, whose first token is there now."""
        self._queue.observe(queue_s)
        self._prefill.observe(max(0.0, now_s - arrival_s - queue_s))

    def handed_over(self, seconds: float) -> None:
        """Counts a prompt whose KV took so long to its decode instance."""
        self._hand_off.observe(seconds)

    def answered(self, last: Tokens) -> None:
        """Counts an answer whose last tokens are `last`."""
        assert last.finish_reason is not None and last.usage is not None, "not the last"
        self.tally.add(metrics.FINISHED, last.finish_reason.value)
        self.tally.observe(metrics.PROMPT_LENGTH, last.usage.prompt_tokens)
        self.tally.observe(metrics.ANSWER_LENGTH, last.usage.completion_tokens)

    @contextlib.asynccontextmanager
    async def failures(self, method: str, context: Context) -> AsyncIterator[None]:
        """Counts a call of `method` that does not end well; goes inside `answered_errors`."""
        try:
            yield
        except BaseException as error:
            self.tally.add(metrics.ERRORS, method, _code_of(error, context).name)
            raise


def _code_of(error: BaseException, context: Context) -> grpc.StatusCode:
    """Returns the status that a call ends with because of `error`."""
    match error:
        case PeerError():
            return error.code
        case MemServeError() | TimeoutError():
            return status_of(error)[0]
        case asyncio.CancelledError():
            return grpc.StatusCode.CANCELLED
        case grpc.aio.AbortError():  # by the body itself
            return _CODES.get(context.code(), grpc.StatusCode.UNKNOWN)
        case _:
            return grpc.StatusCode.UNKNOWN


_CODES = {key: code for code in grpc.StatusCode for key in (code, code.value[0])}
