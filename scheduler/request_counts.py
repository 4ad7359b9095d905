"""What requests add to the scheduler's tally: how they ended, and how long they took."""

import asyncio
import contextlib
from collections.abc import Iterator

import grpc
import grpc.aio

from memserve_jax.core.errors import MemServeError, OverloadedError
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import reason_from_message
from memserve_jax.proto.status import status_of
from memserve_jax.telemetry import scheduler_metrics as metrics
from memserve_jax.telemetry.stream_meter import StreamHistograms, StreamMeter
from memserve_jax.telemetry.tally import Tally


class RequestCounts:
    """Counts requests into a tally. Lives in the asyncio loop."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._histograms = StreamHistograms(
            first_token=tally.histogram(metrics.TIME_TO_FIRST_TOKEN),
            inter_token=tally.histogram(metrics.INTER_TOKEN_LATENCY),
            whole=tally.histogram(metrics.REQUEST_LATENCY),
        )

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Counts the request of the body by how the body ends."""
        code = grpc.StatusCode.OK
        try:
            yield
        except MemServeError as error:
            code = status_of(error)[0]
            if isinstance(error, OverloadedError):
                self._tally.add(metrics.ADMISSION_REJECTIONS, error.reason)
            raise
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._tally.add(metrics.ADMISSION_REJECTIONS, "instance")
            raise
        except asyncio.CancelledError:  # the client hung up, or its deadline has passed
            code = grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            code = grpc.StatusCode.INTERNAL
            raise
        finally:
            self._tally.add(metrics.REQUESTS, code.name)

    def meter(self, arrival_s: float) -> StreamMeter:
        """Returns what measures the answer to a request that came at `arrival_s`."""
        return StreamMeter(self._histograms, arrival_s)

    def finished(self, last: pb.GenerateResponse, expected_cached_tokens: int) -> None:
        """Counts a whole answer.

        Args:
          last: Its last message, as the client gets it.
          expected_cached_tokens: What the route had counted on.
        """
        reason, usage = reason_from_message(last.finish_reason), last.usage
        self._tally.add(metrics.FINISHED, "unknown" if reason is None else reason.value)
        self._tally.add(metrics.PROMPT_TOKENS, amount=usage.prompt_tokens)
        self._tally.add(metrics.CACHED_TOKENS, amount=usage.cached_tokens)
        self._tally.add(metrics.EXPECTED_CACHED_TOKENS, amount=expected_cached_tokens)
        self._tally.add(metrics.GENERATED_TOKENS, amount=usage.completion_tokens)
