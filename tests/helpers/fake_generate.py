"""A GenerateService without a model: scripted answers over real gRPC, and a log of requests."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto import memserve_pb2_grpc as pb_grpc

BLOCK_TOKENS = 16


def prompt_tokens(request: pb.GenerateRequest) -> list[int]:
    """A token per character where the prompt is text."""
    match request.WhichOneof("prompt"):
        case "token_ids":
            return list(request.token_ids.ids)
        case "text":
            return [ord(letter) for letter in request.text]
        case _:
            return [ord(c) for message in request.chat.messages for c in message.content]


class FakeGenerate(pb_grpc.GenerateServiceServicer):
    """Answers token i of a prompt with (sum of the prompt + i) % 100, one a message."""

    def __init__(
        self,
        respond: Callable[..., Iterator[pb.GenerateResponse]] | None = None,
        *,
        caches: bool = True,
    ):
        self.requests: list[pb.GenerateRequest] = []
        self.most_in_flight = 0
        self.respond = respond or self.answer
        self._caches = caches
        self._in_flight = 0
        self._lock = threading.Lock()
        self._seen: list[tuple[str, list[int]]] = []

    def Generate(self, request, context):
        """Counts the request and answers it."""
        with self._lock:
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield from self.respond(request, context)
        finally:
            with self._lock:
                self._in_flight -= 1

    def answer(self, request, context) -> Iterator[pb.GenerateResponse]:
        """A whole answer; the prompt's blocks count as cached from the second time on."""
        prompt = prompt_tokens(request)
        cached = self._match(request.cache_salt, prompt)
        count = request.sampling.max_tokens
        for index in range(count):
            message = pb.GenerateResponse(
                request_id=request.request_id,
                token_ids=[(sum(prompt) + index) % 100],
                first_index=index,
                text="x",
            )
            if index == count - 1:
                message.finish_reason = pb.LENGTH
                message.usage.prompt_tokens = len(prompt)
                message.usage.cached_tokens = cached
                message.usage.completion_tokens = count
                message.timing.kv_blocks_moved = 2
                message.timing.kv_bytes_moved = 2048
                message.timing.prefill_instance = "p0"
                message.timing.decode_instance = "d0"
            yield message

    def _match(self, salt: str, prompt: list[int]) -> int:
        if not self._caches:
            return 0
        with self._lock:
            best = 0
            for other_salt, other in self._seen:
                same = 0
                while same < min(len(prompt) - 1, len(other)) and prompt[same] == other[same]:
                    same += 1
                if other_salt == salt:
                    best = max(best, same // BLOCK_TOKENS * BLOCK_TOKENS)
            self._seen.append((salt, prompt))
            return best


class FakeControl(pb_grpc.ControlServiceServicer):
    """A cluster of one prefill and one decode instance that count `sent_bytes` more each time."""

    def __init__(self, sent_bytes: dict[str, int]):
        self._sent_bytes = sent_bytes
        self._num_asked = 0

    def Quiesce(self, request, context):
        """Nothing is ever under way."""
        return pb.QuiesceReply()

    def ClusterStatus(self, request, context):
        """See the class."""
        self._num_asked += 1
        reply = pb.ClusterStatusReply()
        for role, count in self._sent_bytes.items():
            reply.instances.add(role=role).counters.kv_bytes_sent = count * self._num_asked
        return reply


@contextlib.contextmanager
def served(servicer: FakeGenerate, control: FakeControl | None = None) -> Iterator[str]:
    """Serves on a free port of this machine, whose HOST:PORT it yields."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    pb_grpc.add_GenerateServiceServicer_to_server(servicer, server)
    if control is not None:
        pb_grpc.add_ControlServiceServicer_to_server(control, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()
