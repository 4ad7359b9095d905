"""One request, sent and timed: the stream of an answer becomes a `RequestRecord`."""

from dataclasses import dataclass, field
from typing import Any

import grpc

from memserve_jax.bench.metrics import RequestRecord
from memserve_jax.core.clock import Clock
from memserve_jax.proto import memserve_pb2 as pb

OK = "OK"
BROKEN_STREAM = "BROKEN_STREAM"  # tokens missing, repeated or uncounted, or no last message


@dataclass(slots=True)
class _Heard:
    """What has arrived of an answer so far."""

    token_times_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    last: pb.GenerateResponse | None = None
    problem: str = ""

    def add(self, message: pb.GenerateResponse, now_s: float) -> None:
        if message.token_ids:
            if message.first_index != len(self.token_ids):
                self.problem = self.problem or (
                    f"first_index: got {message.first_index}, wanted {len(self.token_ids)}"
                )
            self.token_times_s.append(now_s)
            self.token_ids += message.token_ids
        self.text += message.text
        if message.finish_reason:
            self.last = message

    def status(self) -> tuple[str, str]:
        """Returns the status of a stream that ended without a gRPC error, and what is wrong."""
        if self.last is None:
            return BROKEN_STREAM, self.problem or "the stream ended without a finish_reason"
        if self.last.finish_reason == pb.CANCELLED:
            return "CANCELLED", "the server cancelled the request"
        counted = self.last.usage.completion_tokens
        if not self.problem and counted != len(self.token_ids):
            self.problem = f"usage counts {counted} tokens, {len(self.token_ids)} came"
        return (BROKEN_STREAM, self.problem) if self.problem else (OK, "")


async def send(
    stub: Any, request: pb.GenerateRequest, *, turn: int, clock: Clock, timeout_s: float
) -> RequestRecord:
    """Sends `request` and follows its answer to the end; never raises for a failed request.

    Args:
      stub: A `GenerateServiceStub` on a `grpc.aio` channel.
      request: Sent as it is.
      turn: Its place in its session.
      clock: Gives the record's times.
      timeout_s: Deadline of the whole answer.
    """
    heard = _Heard()
    sent_s = clock.now_s()
    try:
        async for message in stub.Generate(request, timeout=timeout_s):
            heard.add(message, clock.now_s())
        status, error = heard.status()
    except grpc.aio.AioRpcError as failure:
        status, error = failure.code().name, failure.details() or ""
    last = heard.last or pb.GenerateResponse()
    return RequestRecord(
        request_id=request.request_id,
        session_id=request.session_id,
        turn=turn,
        status=status,
        error=error,
        sent_s=sent_s,
        token_times_s=tuple(heard.token_times_s),
        ended_s=clock.now_s(),
        token_ids=tuple(heard.token_ids),
        text=heard.text,
        prompt_tokens=last.usage.prompt_tokens,
        cached_tokens=last.usage.cached_tokens,
        kv_blocks_moved=last.timing.kv_blocks_moved,
        kv_bytes_moved=last.timing.kv_bytes_moved,
        queue_s=last.timing.queue_s,
        prefill_instance=last.timing.prefill_instance,
        decode_instance=last.timing.decode_instance,
    )
