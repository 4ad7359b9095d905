"""A gRPC server on a free port that answers from a script and records what it was asked."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto import memserve_pb2_grpc as stubs

USAGE = pb.Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=3)
TIMING = pb.Timing(queue_s=0.25, ttft_s=0.5, jct_s=1.5, prefill_instance="p0", decode_instance="d0")
ANSWER = (
    pb.GenerateResponse(request_id="r", token_ids=[7], text="one "),
    pb.GenerateResponse(request_id="r", token_ids=[8, 9], first_index=1, text="zwei €"),
    pb.GenerateResponse(
        request_id="r", first_index=3, finish_reason=pb.STOP, usage=USAGE, timing=TIMING
    ),
)
INSTANCE = pb.InstanceStatus(
    instance="p0",
    role="prefill",
    state="serving",
    target="127.0.0.1:1",
    tensor_parallelism=2,
    caching="pd_caching_3",
    running=1,
    waiting=4,
    tiers=[pb.TierStatus(tier="hbm", num_blocks=64, free_blocks=60, indexed_blocks=3)],
    counters=pb.Counters(
        prompt_tokens=200, cached_tokens=50, output_tokens=30, kv_blocks_sent=9,
        kv_bytes_sent=1_500_000, kv_blocks_received=4, kv_bytes_received=2_000,
    ),
    transports=[
        pb.TransportStatus(transport="tcp", calls=3, bytes=1_500_000, seconds=0.001),
        pb.TransportStatus(transport="jax_transfer"),
    ],
)  # fmt: skip
CLUSTER = pb.ClusterStatusReply(
    instances=[INSTANCE], policy="min_ttft", caching="pd_caching_3", routed=12
)


class FakeServer(
    stubs.GenerateServiceServicer, stubs.ControlServiceServicer, stubs.InstanceServiceServicer
):
    """Answers every call with `replies[method]`: messages, or (code, text) to fail with."""

    def __init__(self):
        self.replies: dict[str, Any] = {
            "Generate": list(ANSWER),
            "Route": pb.RouteResponse(target="d0:1"),
            "ClusterStatus": CLUSTER,
            "Status": INSTANCE,
            "Drain": pb.DrainReply(instance="p0"),
            "SetRole": pb.SetRoleReply(
                instance="p0", role="decode", caching="pd_caching_3", epoch=2
            ),
            "Quiesce": pb.QuiesceReply(),
        }
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.time_limits_s: list[float | None] = []
        self.cancelled = threading.Event()
        self.target = ""

    def Generate(self, request, context):
        context.add_callback(self.cancelled.set)
        for reply in self._reply("Generate", request, context):
            if reply == "hang":
                self.cancelled.wait(30)
                return
            yield reply

    def Route(self, request, context):
        return self._reply("Route", request, context)

    def ClusterStatus(self, request, context):
        return self._reply("ClusterStatus", request, context)

    def Status(self, request, context):
        return self._reply("Status", request, context)

    def Drain(self, request, context):
        return self._reply("Drain", request, context)

    def SetRole(self, request, context):
        return self._reply("SetRole", request, context)

    def Quiesce(self, request, context):
        return self._reply("Quiesce", request, context)

    def Explain(self, request, context):
        return self._reply("Explain", request, context)

    def _reply(self, method: str, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        remaining_s = context.time_remaining()
        has_deadline = remaining_s is not None and remaining_s < 1e6
        self.time_limits_s.append(remaining_s if has_deadline else None)
        reply = self.replies[method]
        if isinstance(reply, tuple):
            context.abort(*reply)
        return reply


@contextlib.contextmanager
def fake_server(*, is_scheduler: bool = True) -> Iterator[FakeServer]:
    """Starts one on a free port; as an instance it has no ControlService."""
    fake = FakeServer()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    stubs.add_GenerateServiceServicer_to_server(fake, server)
    if is_scheduler:
        stubs.add_ControlServiceServicer_to_server(fake, server)
    else:
        stubs.add_InstanceServiceServicer_to_server(fake, server)
    fake.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(grace=0).wait()
