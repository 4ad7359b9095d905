"""A cluster of processes on this machine: a scheduler, and every instance on devices of its own.

The process that looks after them loads no jax. It resolves the config once; each child is told
all of it on its command line.
"""

import dataclasses
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence

from memserve_jax.core.config import Config, to_mapping
from memserve_jax.core.credentials import credentials_of
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.malloc import with_tunables
from memserve_jax.launch.child import ChildCommand
from memserve_jax.launch.lifeline import refuse_unless_supported
from memserve_jax.launch.machine import environments, probe_machine
from memserve_jax.launch.supervisor import Supervisor
from memserve_jax.launch.team import Team, alone
from memserve_jax.launch.topology import ClusterPlan, plan_cluster
from memserve_jax.proto.server import ANY_HOST, LOOPBACK, address, check_address

MAX_PORT = 65535
MEMSERVE = (sys.executable, "-m", "memserve_jax.cli")

_log = logging.getLogger(__name__)


async def launch_processes(config: Config) -> Supervisor:
    """Returns a cluster of processes that serves requests. Call it in the main thread.

    Raises:
      ConfigError: a wrong topology, caching mode or port, too few devices, or what a child said
        that could not start.
      ChildFailedError: a child ended in another way before it was ready.
    """
    refuse_unless_supported()
    plan = plan_cluster(config)
    check_metrics_ports(config, len(plan.instances))
    check_address(config.host, config.port, credentials_of(config.security))
    _log.info("config: %s", to_mapping(config))
    environment = with_tunables(os.environ)
    machine = await probe_machine(environment)
    if machine.platform == "tpu" and has_job(config):
        raise ConfigError(
            "mempool.transports: got collective, allowed on TPUs with --processes: jax_transfer, "
            "tcp; each process sees its own chips alone"
        )
    commands = ClusterCommands(
        config,
        plan,
        environment=environment,
        environments=environments(machine, plan, environment),
        supervisor_pid=os.getpid(),
    )
    return await Supervisor.launch(commands)


class ClusterCommands:
    """The command lines of a cluster's processes."""

    def __init__(
        self,
        config: Config,
        plan: ClusterPlan,
        *,
        environment: Mapping[str, str],
        environments: Sequence[Mapping[str, str]],
        supervisor_pid: int,
    ):
        """Keeps what they need.

        Args:
          config: Of the cluster.
          plan: Its instances.
          environment: The scheduler's.
          environments: Of each instance of `plan`.
          supervisor_pid: Whose end is theirs.
        """
        self._config = config
        self._plan = plan
        self._environment = environment
        self._environments = environments
        self._supervisor = ("--supervisor", str(supervisor_pid))
        self._settings = settings(config)

    def scheduler(self, port: int | None) -> ChildCommand:
        """See `Commands`."""
        own_port = self._config.port if port is None else port
        place = ("--host", self._config.host, "--port", str(own_port))
        return ChildCommand(
            name="scheduler",
            arguments=(*MEMSERVE, "scheduler", *self._supervisor, *place, *self._settings),
            environment=self._environment,
            log=self._config.log,
        )

    def teams(self, target: str) -> list[Team]:
        """See `Commands`. Where `collective` is asked for, all instances are one job."""
        commands = self.instances(target)
        if not has_job(self._config):
            return [alone(command) for command in commands]

        def in_job(names: Sequence[str]) -> list[ChildCommand]:
            members = [command for command in commands if command.name in names]
            return _join(members, address(LOOPBACK, _free_port()))

        return [Team(names=tuple(command.name for command in commands), commands=in_job)]

    def instances(self, target: str) -> list[ChildCommand]:
        """Returns the command of each instance by itself.

        They listen on loopback: only the scheduler is for the world.
        """
        host, _, port = target.rpartition(":")
        if host.strip("[]") in ANY_HOST:
            target = address(LOOPBACK, int(port))
        return [
            ChildCommand(
                name=str(each.instance),
                arguments=(
                    *(*MEMSERVE, "instance", *self._supervisor),
                    *("--name", str(each.instance), "--role", each.role.value),
                    *("--tp", str(each.tp), "--caching", self._plan.caching.value),
                    *("--scheduler", target, "--host", LOOPBACK, "--port", "0"),
                    *(*self._settings, *self._metrics_port(index)),
                ),
                environment=environment,
                log=self._config.log,
            )
            for index, (each, environment) in enumerate(
                zip(self._plan.instances, self._environments, strict=True)
            )
        ]

    def _metrics_port(self, index: int) -> list[str]:
        """Returns the option that gives an instance a port of its own, after the scheduler's."""
        port = self._config.metrics.port
        return ["--set", f"metrics.port={port + 1 + index}"] if port else []


def has_job(config: Config) -> bool:
    """Whether the instances of a cluster of processes are one `jax.distributed` job."""
    return "collective" in (config.mempool.transports or ())


def check_metrics_ports(config: Config, num_instances: int) -> None:
    """Does nothing where every process can have a port for its metrics.

    Raises:
      ConfigError: the port given leaves no room for the instances after it.
    """
    port = config.metrics.port
    if port and port + num_instances > MAX_PORT:
        raise ConfigError(
            f"metrics.port: got {port}, allowed with --processes and {num_instances} instances: "
            f"up to {MAX_PORT - num_instances}, as they take the ports after it"
        )


def settings(config: Config) -> list[str]:
    """Returns the `--set` options that turn the defaults into what all of `config` share."""
    own = dataclasses.replace(
        config, topology=Config.topology, instances=(), caching=None, tp=1, host="", port=0
    )
    given, default = _leaves(to_mapping(own)), _leaves(to_mapping(Config(host="", port=0)))
    return [
        option
        for key, value in given.items()
        if value != default[key]
        for option in ("--set", f"{key}={json.dumps(value, ensure_ascii=False)}")
    ]


def _leaves(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Returns dotted key -> value of nested mappings."""
    leaves: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _join(commands: Sequence[ChildCommand], coordinator: str) -> list[ChildCommand]:
    """Returns `commands` as one job."""
    return [
        dataclasses.replace(
            command,
            arguments=(*command.arguments, "--job", f"{coordinator},{index},{len(commands)}"),
        )
        for index, command in enumerate(commands)
    ]


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return server.getsockname()[1]
