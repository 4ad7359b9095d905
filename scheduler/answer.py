"""One answer as the client sees it: every token once, in order, with the front door's times.

An instance's stream is in order by itself; a request that is replayed on another instance sends
some tokens again. Order and duplicates are told by `first_index`.
"""

from collections.abc import Iterable

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import Request
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry.stream_meter import StreamMeter


class Answer:
    """The tokens of one request, from whichever instances they come."""

    def __init__(self, request: Request, *, sent_s: float, meter: StreamMeter | None = None):
        """Starts with no token.

        Args:
          request: What the client asked for.
          sent_s: When it was sent to an instance.
          meter: Told of every token that passes; None: nobody is.
        """
        self._request = request
        self._meter = meter
        self._sent_s = sent_s
        self._token_ids: list[int] = []
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

    def take(self, response: pb.GenerateResponse, now_s: float) -> Iterable[pb.GenerateResponse]:
        """Returns what can go to the client now that `response` is here, in order.

        Args:
          response: From an instance; it may be changed and handed on.
          now_s: On the clock of the request's arrival.

        Raises:
          MemServeError: the tokens overlap those sent in part, so the text cannot be told apart.
        """
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
        message.request_id = self._request.request_id
        self._token_ids += message.token_ids
        if self._meter is not None:
            self._meter.passed(len(message.token_ids), now_s)
        if self._first_token_s is None and self._token_ids:
            self._first_token_s = now_s
        if message.finish_reason != pb.FINISH_REASON_UNSPECIFIED:
            self._complete(message, now_s)
            self._last = message
        return message

    def _complete(self, message: pb.GenerateResponse, now_s: float) -> None:
        arrival_s = self._request.arrival_s
        message.usage.prompt_tokens = len(self._request.prompt_token_ids)
        message.usage.completion_tokens = len(self._token_ids)
        if self._first_token_s is not None:
            message.timing.ttft_s = self._first_token_s - arrival_s
        message.timing.jct_s = now_s - arrival_s
        if self._meter is not None:
            self._meter.finished(now_s)
        message.timing.queue_s += self._sent_s - arrival_s
