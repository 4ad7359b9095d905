"""One answer as the client sees it: every token once, in order, with the front door's times.

It outlives the attempts that it is put together from: a replay is asked for what comes after the
tokens that the client has. Order and duplicates are told by `first_index`.
"""

from collections.abc import Iterable, Mapping

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import Request
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import client_id
from memserve_jax.telemetry.stream_meter import StreamMeter


class Answer:
    """The tokens of one request, from whichever instances they come."""

    def __init__(self, request: Request, *, meter: StreamMeter | None = None):
        """Starts with no token that the client does not have.

        Args:
          request: What the client asked for.
          meter: Told of every token that passes; None: nobody is.
        """
        self._request = request
        self._request_id = client_id(request.request_id)
        self._meter = meter
        self._sent_s = request.arrival_s
        self._begun: pb.Begun | None = None  # of the first attempt that gave a token
        self._token_ids: list[int] = list(request.resumed_token_ids)
        self._early: dict[int, pb.GenerateResponse] = {}  # first_index -> came before its turn
        self._last: pb.GenerateResponse | None = None
        self._first_token_s: float | None = None

    @property
    def token_ids(self) -> list[int]:
        """Tokens so far."""
        return self._token_ids

    @property
    def is_finished(self) -> bool:
        """Whether the last message has passed."""
        return self._last is not None

    @property
    def last(self) -> pb.GenerateResponse | None:
        """The last message, as the client gets it; None before it has passed."""
        return self._last

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """What a trace or a log says of a whole answer."""
        assert self._last is not None, "not whole"
        usage, timing = self._last.usage, self._last.timing
        return {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "memserve.cached_tokens": usage.cached_tokens,
            "memserve.finish_reason": pb.FinishReason.Name(self._last.finish_reason).lower(),
            "memserve.prefill_instance": timing.prefill_instance,
            "memserve.decode_instance": timing.decode_instance,
            "memserve.kv_blocks_moved": timing.kv_blocks_moved,
            "memserve.kv_bytes_moved": timing.kv_bytes_moved,
            "memserve.queue_s": timing.queue_s,
            "memserve.ttft_s": timing.ttft_s,
            "memserve.jct_s": timing.jct_s,
        }

    def sent(self, now_s: float) -> None:
        """Notes an attempt: what another one sent too early is of no use any more."""
        self._early.clear()
        self._sent_s = now_s

    def take(self, response: pb.GenerateResponse, now_s: float) -> Iterable[pb.GenerateResponse]:
        """Returns what can go to the client now that `response` is here, in order.

        Args:
          response: From an instance; it may be changed and handed on.
          now_s: On the clock of the request's arrival.

        Raises:
          MemServeError: the tokens overlap those sent in part, so the text cannot be told apart.
        """
        if not self._early and response.first_index == len(self._token_ids) and self._last is None:
            return (self._pass(response, now_s),)
        self._early.setdefault(response.first_index, response)
        ready: list[pb.GenerateResponse] = []
        while self._last is None and self._early:
            first = min(self._early)
            if first > len(self._token_ids):
                break
            message = self._early.pop(first)
            if self._is_new(message):
                ready.append(self._pass(message, now_s))
        return ready

    def _is_new(self, message: pb.GenerateResponse) -> bool:
        """Whether `message` says anything that was not said before.

        Raises:
          MemServeError: in part.
        """
        known = len(self._token_ids) - message.first_index
        if known == 0:
            return True
        if known >= len(message.token_ids):
            return False
        raise MemServeError(
            f"request {self._request.request_id}: got tokens {message.first_index} to "
            f"{message.first_index + len(message.token_ids) - 1}, next was {len(self._token_ids)}"
        )

    def _pass(self, message: pb.GenerateResponse, now_s: float) -> pb.GenerateResponse:
        message.request_id = self._request_id
        self._token_ids += message.token_ids
        if message.HasField("begun"):
            self._begin(message.begun)
            message.ClearField("begun")
        if self._meter is not None:
            self._meter.passed(len(message.token_ids), now_s)
        if self._first_token_s is None and message.token_ids:
            self._first_token_s = now_s
        if message.finish_reason != pb.FINISH_REASON_UNSPECIFIED:
            self._complete(message, now_s)
            self._last = message
        return message

    def _begin(self, begun: pb.Begun) -> None:
        """Keeps how the first attempt began: its hits and its queue are the request's."""
        if self._begun is None:
            waited_s = self._sent_s - self._request.arrival_s
            self._begun = pb.Begun(
                cached_tokens=begun.cached_tokens, queue_s=begun.queue_s + waited_s
            )

    def _complete(self, message: pb.GenerateResponse, now_s: float) -> None:
        arrival_s = self._request.arrival_s
        message.usage.prompt_tokens = len(self._request.prompt_token_ids)
        message.usage.completion_tokens = len(self._token_ids)
        if self._first_token_s is not None:
            message.timing.ttft_s = self._first_token_s - arrival_s
        message.timing.jct_s = now_s - arrival_s
        if self._meter is not None:
            self._meter.finished(now_s)
        if self._begun is None:
            message.timing.queue_s += self._sent_s - arrival_s
        else:
            message.timing.queue_s = self._begun.queue_s
            message.usage.cached_tokens = self._begun.cached_tokens
