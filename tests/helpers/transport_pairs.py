"""Two or more real processes with a pool each, and the transport under test between them."""

import contextlib
import itertools
import socket

from memserve_jax.bench.pool_processes import introduce, pool_workers
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId
from memserve_jax.parallel.job import Job

NUM_DEVICES = 4


def layout(num_heads=4) -> KVLayout:
    return KVLayout(
        num_layers=2,
        num_kv_heads=num_heads,
        block_size_tokens=4,
        head_dim=8,
        dtype="float32",
    )


class Processes:
    """Pools p0, p1, ... in processes of their own."""

    def __init__(self, workers, transport):
        self.workers, self.transport = workers, transport
        self.names = [InstanceId(f"p{index}") for index in range(len(workers))]
        self._prompts = itertools.count(1)

    def make_pools(self, tps, *, num_heads=4, **options) -> None:
        """Makes a pool in every process, in place of the last one there."""
        for worker, name, tp in zip(self.workers, self.names, tps, strict=True):
            with contextlib.suppress(KeyError):
                worker.ask("drop_pool", name)
            worker.ask(
                "make_pool",
                name,
                layout(num_heads),
                tuple(range(tp)),
                (self.transport,),
                {"hbm_blocks": 32} | options,
            )

    def prompt(self, num_blocks=5) -> tuple[int, ...]:
        """Tokens that no other prompt has."""
        first = next(self._prompts) * 1000
        return tuple(range(first, first + num_blocks * 4))

    def send(self, source, target, prompt=None, *, timeout_s=60.0):
        """Caches a prompt at the source and starts to send it; returns it and what comes of it."""
        prompt = prompt or self.prompt()
        self.workers[source].ask("cache", self.names[source], prompt)
        return prompt, self.workers[source].start(
            "transfer", self.names[source], self.names[target], prompt, timeout_s
        )

    def digest(self, index, prompt):
        return self.workers[index].ask("digest", self.names[index], prompt)

    def num_leased(self, index) -> int:
        """Checks the pool too."""
        return self.workers[index].ask("check", self.names[index])


@contextlib.contextmanager
def processes(num_processes, transport):
    """Yields so many processes that know each other; ends them."""
    with pool_workers([str(i) for i in range(num_processes)], is_quiet=True) as workers:
        with socket.create_server(("127.0.0.1", 0)) as server:
            coordinator = f"127.0.0.1:{server.getsockname()[1]}"
        started = [
            worker.start(
                "use_devices",
                NUM_DEVICES,
                Job(coordinator=coordinator, process=index, num_processes=num_processes)
                if transport == "collective"
                else None,
            )
            for index, worker in enumerate(workers)
        ]
        for done in started:
            done.result()
        made = Processes(workers, transport)
        for first, second in itertools.combinations(range(num_processes), 2):
            introduce(workers[first], workers[second], ([made.names[first]], [made.names[second]]))
        yield made
