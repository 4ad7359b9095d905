"""A synchronous client of a scheduler, or of one instance. Never loads jax."""

import contextlib
import types
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import grpc

from memserve_jax.client.answer import Answer, Chunk, join, to_chunk
from memserve_jax.client.errors import ClientError
from memserve_jax.client.request import Prompt, build_request, trace_metadata
from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto import memserve_pb2_grpc as stubs
from memserve_jax.proto.status import retry_after_s
from memserve_jax.proto.tls import open_blocking_channel, with_bearer
from memserve_jax.telemetry.request_context import Metadata

_CONTROL_TIMEOUT_S = 10.0
_REBUILD_TIMEOUT_S = 600.0  # an engine may have much to compile


class Client:
    """Calls on one server. Any thread may use it; `close` it, or use `with`."""

    def __init__(
        self, target: str, *, timeout_s: float | None = None, credentials: Credentials = PLAIN
    ):
        """Connects when first used.

        Args:
          target: HOST:PORT.
          timeout_s: Deadline of each answer where the call gives none; None: no deadline.
          credentials: What `client_credentials` makes; certificates are read now, once.

        Raises:
          ConfigError: another machine, in plain text, which the credentials do not allow.
        """
        self.target = target
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._channel = open_blocking_channel(target, credentials)
        self._generate: Any = stubs.GenerateServiceStub(self._channel)
        self._control: Any = stubs.ControlServiceStub(self._channel)
        self._instance: Any = stubs.InstanceServiceStub(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        **options: Any,
    ) -> Answer:
        """Returns the whole answer.

        Args:
          prompt: A text; or give `token_ids` or `messages` (`role` and `content` each).
          token_ids: A prompt already tokenised, taken as it is.
          messages: A chat; the server applies the model's chat template.
          timeout_s: Deadline; None: the client's.
          traceparent: Of the caller's span (W3C trace context), for the trace to go on there.
          **options: Fields of the wire's `SamplingParams` (`max_tokens`, `temperature`, `stop`,
            …) and `GenerateRequest` (`session_id`, `cache_salt`, `priority`, `request_id`).

        Raises:
          ClientError: what the server or the connection says.
          ValueError: an unknown option or a value of the wrong type.
        """
        request = build_request(Prompt(prompt, token_ids, messages), options)
        chunks = self._chunks(request, timeout_s, trace_metadata(traceparent))
        with contextlib.closing(chunks):
            return join(chunks)

    def stream(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        **options: Any,
    ) -> Generator[Chunk, None, None]:
        """Returns the answer piece by piece; dropping or closing the iterator cancels the rest.

        Arguments and errors as of `generate`; a ValueError comes at once, a ClientError while
        iterating.
        """
        request = build_request(Prompt(prompt, token_ids, messages), options)
        return self._chunks(request, timeout_s, trace_metadata(traceparent))

    def route(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        **options: Any,
    ) -> pb.RouteResponse:
        """Returns where the scheduler would send this request. Arguments as of `generate`."""
        request = build_request(Prompt(prompt, token_ids, messages), options)
        return self._call(self._generate.Route, request, _CONTROL_TIMEOUT_S)

    def explain(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        **options: Any,
    ) -> pb.ExplainReply:
        """Returns why the scheduler would send this request where it would.

        Nothing is counted or changed. Arguments as of `generate`.

        Raises:
          ClientError: what the server or the connection says.
        """
        request = build_request(Prompt(prompt, token_ids, messages), options)
        return self._call(self._control.Explain, request, _CONTROL_TIMEOUT_S)

    def status(self, *, timeout_s: float = _CONTROL_TIMEOUT_S) -> pb.ClusterStatusReply:
        """Returns the cluster's status; of an instance, a cluster of that one.

        Raises:
          ClientError: what the server or the connection says.
        """
        request = pb.StatusRequest()
        try:
            return self._call(self._control.ClusterStatus, request, timeout_s)
        except ClientError as error:
            if error.code != "UNIMPLEMENTED":
                raise
        status = self._call(self._instance.Status, request, timeout_s)
        return pb.ClusterStatusReply(instances=[status], caching=status.caching)

    def drain(self, instance: str, *, timeout_s: float = 300.0, force: bool = False) -> None:
        """Returns once `instance` has finished its requests and left the cluster.

        Args:
          instance: Its name.
          timeout_s: How long it may take over its requests.
          force: Even if it is the last of its role.

        Raises:
          ClientError: NOT_FOUND, FAILED_PRECONDITION (the last of its role), DEADLINE_EXCEEDED.
        """
        request = pb.DrainRequest(instance=instance, timeout_s=timeout_s, force=force)
        self._call(self._control.Drain, request, timeout_s + _CONTROL_TIMEOUT_S)

    def set_role(
        self,
        instance: str,
        role: str,
        *,
        caching: str | None = None,
        timeout_s: float = 300.0,
        force: bool = False,
    ) -> pb.SetRoleReply:
        """Returns once `instance` has finished its requests and serves in another role.

        Args:
          instance: Its name.
          role: prefill, decode or colocated.
          caching: Its caching mode; None: as the other instances of such roles have it.
          timeout_s: How long it may take over its requests; a new engine comes on top.
          force: Even if it is the last of its role.

        Raises:
          ClientError: INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION (the last of its role, or
            it does not fit the others), DEADLINE_EXCEEDED (it goes on as before).
        """
        request = pb.SetRoleRequest(
            instance=instance, role=role, caching=caching or "", timeout_s=timeout_s, force=force
        )
        return self._call(self._control.SetRole, request, timeout_s + _REBUILD_TIMEOUT_S)

    def quiesce(self, *, timeout_s: float = 60.0) -> None:
        """Returns once no request, transfer or lease is left anywhere.

        Raises:
          ClientError: DEADLINE_EXCEEDED, or what the server or the connection says.
        """
        request = pb.QuiesceRequest()
        try:
            self._call(self._control.Quiesce, request, timeout_s)
        except ClientError as error:
            if error.code != "UNIMPLEMENTED":
                raise
            self._call(self._instance.Quiesce, request, timeout_s)

    def close(self) -> None:
        """Drops the connection; running calls are cancelled."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def _chunks(
        self, request: pb.GenerateRequest, timeout_s: float | None, metadata: Metadata
    ) -> Generator[Chunk, None, None]:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        called_with = with_bearer(self._credentials, metadata or None)
        call = self._generate.Generate(request, timeout=timeout_s, metadata=called_with)
        try:
            for message in call:
                yield to_chunk(message)
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s, metadata=with_bearer(self._credentials))
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: Any) -> ClientError:
        code, details = error.code().name, error.details() or ""
        if code == "UNAVAILABLE" and details.startswith("failed to connect"):
            details = f"cannot reach {self.target}: {details.rsplit(': ', 1)[-1]}"
        return ClientError(code, details, retry_after_s=retry_after_s(error.trailing_metadata()))
