"""Clusters of real `memserve` processes: real sockets, real signals, a tiny checkpoint.

Each process writes its stderr to a file; whatever a test does, none outlives its `with`.
"""

import contextlib
import pathlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grpc

from memserve_jax.cli import main
from memserve_jax.client import Client
from memserve_jax.core.config import parse_config
from memserve_jax.launch.topology import InstancePlan, plan_cluster
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import InstanceServiceStub
from tests.helpers.forks import Fork, Main

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "memserve_jax.cli")
PATIENCE_S = 120.0  # far more than anything on a tiny model takes
TINY = {  # section.key -> value: what makes processes start quickly, and tests see soon
    "model.dtype": "float32",
    "engine.warm_up": "false",
    "engine.max_running": "4",
    "engine.chunk_tokens": "32",
    "engine.max_context_tokens": "1024",
    "engine.compile_cache": str(ROOT / "build" / "jax_cache"),
    "mempool.hbm_blocks": "256",
    "scheduler.heartbeat_s": "0.1",
    "scheduler.heartbeat_timeout_s": "30",  # a busy machine is no dead instance
}


class Process:
    """One `memserve` process of ours."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log_path: pathlib.Path,
        forks: Main | None = None,
    ):
        """Starts it; `wait_until_ready` waits for its line.

        Args:
          name: What tests call it.
          arguments: Of `memserve`.
          log_path: Gets its stderr, behind what is there.
          forks: What a fork is to run with them; None: a `memserve` is started as users do.
        """
        self.name = name
        self.arguments = tuple(arguments)
        self.log_path = log_path
        self.line = ""  # what it said on stdout once it was ready
        with log_path.open("ab") as log:
            if forks is not None:
                self.popen = Fork(forks, arguments, cwd=ROOT, log=log)
                return
            self.popen = subprocess.Popen(
                [*PROGRAM, *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def target(self) -> str:
        """HOST:PORT, once it is ready."""
        return self.line.rpartition("grpc=")[2]

    @property
    def log(self) -> str:
        """What it wrote to stderr, and earlier lives of the same name before it."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def wait_until_ready(self) -> None:
        """Returns when it has said its line; fails the test where it ends or says nothing."""
        assert self.popen.stdout is not None
        readable, _, _ = select.select([self.popen.stdout], [], [], PATIENCE_S)
        self.line = self.popen.stdout.readline().rstrip("\n") if readable else ""
        assert self.line.startswith("ready "), f"{self.name}: {self.line}\n{self.log}"

    def wait(self) -> int:
        """Returns its exit status (below 0: of which signal it died) when it has ended."""
        return self.popen.wait(PATIENCE_S)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal; returns the exit status and what stdout had after the ready line."""
        self.popen.send_signal(number)
        rest, _ = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.wait(), rest

    def close(self) -> None:
        """Makes sure that it is gone."""
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@contextlib.contextmanager
def memserve(*arguments: str, log: pathlib.Path) -> Iterator[Process]:
    """Runs `memserve` and yields it when it is ready; ends it hard where the test has not."""
    process = Process(arguments[0], arguments, log_path=log)
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.close()


@dataclass(frozen=True)
class Refusal:
    """How a command ended that could not be."""

    line: str  # why: the one line of its own
    log: str  # all of its stderr


def refusal(*arguments: str) -> Refusal:
    """Runs a `memserve` that must exit 2, with one line of its own and nothing on stdout."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("memserve")]
    return Refusal(line, done.stderr)


def settings(path: str, overrides: Mapping[str, object]) -> list[str]:
    """Returns the options that all commands of a test cluster share.

    Args:
      path: Of the model.
      overrides: section.key -> value, laid over `TINY`.
    """
    values = {**TINY, **{key: str(value) for key, value in overrides.items()}}
    pairs = [option for key, value in values.items() for option in ("--set", f"{key}={value}")]
    return ["--model", path, *pairs]


class Cluster:
    """What a test may ask of a cluster of processes, however it was started."""

    def __init__(self) -> None:
        self._client: Client | None = None

    @property
    def target(self) -> str:
        """HOST:PORT of the scheduler: the same in all its lives."""
        raise NotImplementedError

    @property
    def client(self) -> Client:
        """Of the scheduler."""
        if self._client is None:
            self._client = Client(self.target)
        return self._client

    def statuses(self) -> dict[str, pb.InstanceStatus]:
        """Returns the state of each instance that the scheduler knows."""
        return {each.instance: each for each in self.client.status().instances}

    def counters(self) -> dict[str, pb.Counters]:
        """Returns each instance's totals, once nothing is in flight."""
        self.client.quiesce(timeout_s=PATIENCE_S)
        return {name: status.counters for name, status in self.statuses().items()}

    def settle(self) -> None:
        """Waits until nothing is in flight; asserts that no lease is left, and all invariants."""
        self.client.quiesce(timeout_s=PATIENCE_S)
        for name, status in self.statuses().items():
            with grpc.insecure_channel(status.target) as channel:
                found = InstanceServiceStub(channel).Check(pb.CheckRequest(), timeout=PATIENCE_S)
            assert found == pb.CheckReply(), f"{name}: {found}"

    def close(self) -> None:
        """Closes the client."""
        if self._client is not None:
            self._client.close()


class ProcessCluster(Cluster):
    """A scheduler process and instance processes, started by the separate commands."""

    def __init__(
        self,
        path: str,
        topology: str,
        *,
        folder: pathlib.Path,
        caching: str | None = None,
        tp: int | Mapping[str, int] = 1,
        overrides: Mapping[str, object] | None = None,
    ):
        """Starts nothing yet.

        Args:
          path: Of the model.
          topology: As `--topology`; instances are called p0, d0, c0 as in `memserve serve`.
          folder: Where the logs go: NAME.log.
          caching: As `--caching`.
          tp: Of every instance, or by name (1 where it is not named).
          overrides: section.key -> value, laid over `TINY`.
        """
        super().__init__()
        self._common = settings(path, overrides or {})
        self._caching = ["--caching", caching] if caching else []
        self._tp = tp
        self._folder = folder
        self._plans = plan_cluster(parse_config({"topology": topology})).instances
        self.processes: dict[str, Process] = {}  # by name; "scheduler" among them

    @property
    def names(self) -> list[str]:
        """Of the instances."""
        return [str(plan.instance) for plan in self._plans]

    @property
    def scheduler(self) -> Process:
        return self.processes["scheduler"]

    @property
    def target(self) -> str:
        """See `Cluster`."""
        return self.scheduler.target

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def start(self) -> None:
        """Starts everything, the instances side by side, and waits until all is ready."""
        self._start("scheduler", ["scheduler", "--port", "0", *self._common])
        self.scheduler.wait_until_ready()
        for plan in self._plans:
            self._start(str(plan.instance), self._instance_arguments(plan))
        for name in self.names:
            self[name].wait_until_ready()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to a process and returns its exit status once it has ended."""
        self[name].popen.send_signal(number)
        return self[name].wait()

    def restart(self, name: str) -> None:
        """Starts a process that has ended again, in place of it; returns when it is ready.

        The scheduler comes back on the same port.
        """
        old = self[name]
        assert not old.is_alive, f"{name} still runs"
        old.close()
        arguments = list(old.arguments)
        if name == "scheduler":
            arguments[arguments.index("--port") + 1] = old.target.rpartition(":")[2]
        self._start(name, arguments)
        self[name].wait_until_ready()

    def close(self) -> None:
        """Makes sure that every process is gone."""
        super().close()
        for process in self.processes.values():
            process.popen.kill()
        for process in self.processes.values():
            process.close()

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        log_path = self._folder / f"{name}.log"
        self.processes[name] = Process(name, arguments, log_path=log_path, forks=main)

    def _instance_arguments(self, plan: InstancePlan) -> list[str]:
        name = str(plan.instance)
        tp = self._tp if isinstance(self._tp, int) else self._tp.get(name, 1)
        return [
            "instance",
            *("--name", name, "--role", plan.role.value, "--tp", str(tp)),
            *("--scheduler", self.target),
            *self._caching,
            *self._common,
        ]


@contextlib.contextmanager
def process_cluster(
    path: str,
    topology: str = "1p1d",
    *,
    folder: pathlib.Path,
    caching: str | None = None,
    tp: int | Mapping[str, int] = 1,
    overrides: Mapping[str, object] | None = None,
) -> Iterator[ProcessCluster]:
    """Runs a `ProcessCluster`; see there. Nothing of it is left afterwards."""
    cluster = ProcessCluster(
        path, topology, folder=folder, caching=caching, tp=tp, overrides=overrides
    )
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


class ServedProcesses(Cluster):
    """A `memserve serve --processes`, which looks after its own children."""

    def __init__(self, serve: Process):
        """For a process that is ready."""
        super().__init__()
        self.serve = serve

    @property
    def target(self) -> str:
        """See `Cluster`."""
        return self.serve.target

    @property
    def children(self) -> dict[str, int]:
        """The process id of each child that lives, by name; `scheduler` among them."""
        found = {}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                words = (folder / "cmdline").read_text().split("\0")
                if fields[1] == str(self.serve.pid) and fields[0] != "Z":
                    is_instance = "--name" in words
                    name = words[words.index("--name") + 1] if is_instance else "scheduler"
                    found[name] = int(folder.name)
        return found


@contextlib.contextmanager
def served_processes(
    path: str,
    *arguments: str,
    folder: pathlib.Path,
    overrides: Mapping[str, object] | None = None,
) -> Iterator[ServedProcesses]:
    """Runs `memserve serve --processes`; nothing of it is left afterwards.

    Args:
      path: Of the model.
      arguments: Of the command.
      folder: Where its log goes, that of its children in it: serve.log.
      overrides: section.key -> value, laid over `TINY`.
    """
    command = ["serve", "--processes", "--port", "0", *arguments, *settings(path, overrides or {})]
    with memserve(*command, log=folder / "serve.log") as serve:
        cluster = ServedProcesses(serve)
        try:
            yield cluster
        finally:
            cluster.close()
