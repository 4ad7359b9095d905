"""A local cluster beside code that knows no asyncio: tests, notebooks, measurements."""

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, TypeVar

from memserve_jax.core.config import Config
from memserve_jax.core.types import InstanceId
from memserve_jax.engine.engine import Engine
from memserve_jax.launch.build import Progress
from memserve_jax.launch.local import LocalCluster
from memserve_jax.mempool.pool import MemPool
from memserve_jax.serving.instance import Instance

_T = TypeVar("_T")


class BackgroundCluster:
    """A `LocalCluster` whose asyncio loop runs in a thread of its own. Use it in a `with`."""

    def __init__(self, config: Config, *, progress: Progress | None = None):
        """Starts the cluster and waits until it serves.

        Raises:
          ConfigError, CheckpointError: as `LocalCluster.launch`; nothing is left running.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="local-cluster", daemon=True
        )
        self._thread.start()
        try:
            self._cluster = self._wait(LocalCluster.launch(config, progress=progress))
        except BaseException:
            self._end_loop()
            raise

    @property
    def target(self) -> str:
        """HOST:PORT of the scheduler."""
        return self._cluster.target

    @property
    def instance_targets(self) -> Mapping[InstanceId, str]:
        """HOST:PORT of each instance."""
        return {name: server.target for name, server in self._cluster.instances.items()}

    @property
    def instances(self) -> Mapping[InstanceId, Instance]:
        """Each instance as its servicers see it."""
        return {name: server.instance for name, server in self._cluster.instances.items()}

    @property
    def pools(self) -> Mapping[InstanceId, MemPool]:
        """The pool of each instance; look at it only after `quiesce`."""
        return self._cluster.pools

    @property
    def engines(self) -> Mapping[InstanceId, Engine]:
        """The engine of each instance; look at it only after `quiesce`."""
        return self._cluster.engines

    def quiesce(self, timeout_s: float = 60.0) -> None:
        """Returns when no instance has a request, a transfer or a lease left.

        Raises:
          TimeoutError: something was left after `timeout_s`.
        """
        self._wait(self._cluster.quiesce(timeout_s))

    def kill(self, name: InstanceId) -> None:
        """Ends one instance as a crash would: for tests of what the others make of it."""
        self._wait(self._cluster.kill(name))

    def check(self) -> None:
        """Asserts every invariant of scheduler, engines and pools, between two steps."""
        self._wait(self._check())

    def stop(self) -> None:
        """Cancels what is under way, frees everything, ends the thread."""
        try:
            self._wait(self._cluster.stop())
        finally:
            self._end_loop()

    def __enter__(self) -> "BackgroundCluster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def _check(self) -> None:
        self._cluster.scheduler.state.check()
        for server in self._cluster.instances.values():
            parts = server.instance.parts
            await server.instance.run(parts.engine.check)
            await server.instance.run(parts.pool.check)

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
