"""A prefill and a decode engine in one thread, and the calls between them."""

from concurrent.futures import Future

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import CachingMode, InstanceId, Role
from memserve_jax.engine.events import Failed, FirstToken, Tokens
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from tests.helpers.engines import GREEDY, Answered, make_engine, make_request

P0, D0 = InstanceId("p0"), InstanceId("d0")


class DirectChannel:
    """A PeerChannel of direct calls. `refuses` makes calls of a kind fail."""

    def __init__(self):
        self.pools, self.refuses = {}, set()

    def reserve(self, to, call, *, timeout_s):
        return self._call("reserve", to, lambda pool, set_: pool.reserve(call, set_))

    def commit(self, to, transfer_id, *, timeout_s):
        def commit(pool, set_):
            pool.commit(transfer_id, set_)

        return self._call("commit", to, commit)

    def abort(self, to, transfer_id, reason):
        def abort(pool, set_):
            pool.abort(transfer_id, reason)
            set_(None)

        return self._call("abort", to, abort)

    def fetch(self, owner, call, *, timeout_s):
        return self._call("fetch", owner, lambda pool, set_: pool.serve_fetch(call, set_))

    def _call(self, kind, to, call) -> Future:
        future = Future()

        def resolve(answer):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        if kind in self.refuses or to not in self.pools:
            resolve(TransferFailedError(f"{to}: no {kind} today"))
        else:
            call(self.pools[to], resolve)
        return future


class Pair:
    """p0 and d0, on disjoint devices, and who asked what of them."""

    def __init__(
        self,
        caching: CachingMode,
        *,
        prefill_tp=1,
        decode_tp=1,
        decode_options=None,
        **options,
    ):
        self.clock, self.channel, self.fabric = ManualClock(), DirectChannel(), LocalFabric()
        self.transports = [DevicePutTransport(self.fabric, self.clock) for _ in range(2)]
        common = {"caching": caching, "channel": self.channel, "clock": self.clock} | options
        self.prefill, self.prefill_pool = make_engine(
            instance=P0,
            role=Role.PREFILL,
            tp=prefill_tp,
            transports=self.transports[:1],
            **common,
        )
        self.decode, self.decode_pool = make_engine(
            instance=D0,
            role=Role.DECODE,
            first_device=prefill_tp,
            tp=decode_tp,
            transports=self.transports[1:],
            **(common | (decode_options or {})),
        )
        for name, pool in ((P0, self.prefill_pool), (D0, self.decode_pool)):
            self.channel.pools[name] = pool
        self.answers: dict[str, Answered] = {}
        self.prefills: dict[str, Answered] = {}

    def ask(self, name, prompt, sampling=GREEDY, **fields) -> None:
        """Sends a request the way a decode instance does."""
        request = make_request(name, prompt, sampling, **fields)
        self.answers[name], self.prefills[name] = Answered(), Answered()
        self.decode.expect(request, P0)
        self.prefill.submit_prefill(request, D0)

    def step(self) -> None:
        """Steps both engines once and carries first tokens and failures over."""
        for event in self.prefill.step():
            if not isinstance(event, Tokens):  # Tokens: the end of a cancelled prefill
                self.prefills[event.request_id].take(event)
            if isinstance(event, FirstToken):
                self.decode.first_token(event)
            if isinstance(event, Failed):
                self.decode.fail(event.request_id, event.error)
        for event in self.decode.step():
            self.answers[event.request_id].take(event)
        self.prefill.check()
        self.decode.check()

    def run(self, *, until=None, max_steps=20000) -> None:
        """Steps until nothing is in flight, or `until` says so."""
        for _ in range(max_steps):
            if until() if until else self.is_quiet:
                return
            self.step()
        raise AssertionError("the pair does not come to rest")

    @property
    def is_quiet(self) -> bool:
        """Whether no request, transfer or lease is left on either side."""
        pools = (self.prefill_pool, self.decode_pool)
        return self.is_idle and not any(pool.num_leased for pool in pools)

    @property
    def is_idle(self) -> bool:
        """Whether no request and no send-back is left on either side."""
        engines = (self.prefill, self.decode)
        return not any(engine.num_in_flight or engine.has_work for engine in engines)

    def answer(self, name, prompt, sampling=GREEDY) -> Answered:
        """Returns the answer to one request, after all is quiet again."""
        self.ask(name, prompt, sampling)
        self.run()
        return self.answers[name]

    def close(self) -> None:
        """Ends the transports' threads."""
        for transport in self.transports:
            transport.close()
