"""Which transports an instance has follows from its role, its config and who shares its process."""

import asyncio
import dataclasses
import pathlib
import socket
from typing import Any

import jax
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.credentials import PLAIN, Credentials, credentials_of
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.core.types import Role
from memserve_jax.launch.links import (
    BETWEEN_PROCESSES,
    NO_LINKS,
    Links,
    Situation,
    check_transports,
    make_links,
    reachable_host,
    transport_names,
)
from memserve_jax.mempool.device_put import LocalFabric
from memserve_jax.parallel.job import Job
from memserve_jax.serving.peers import Peers
from tests.helpers.certificates import make_authority

JOB = Job(coordinator="10.0.0.1:4000", process=0, num_processes=2)


def links_of(
    role: Role,
    *,
    fabric: LocalFabric | None = None,
    job: Job | None = None,
    **mempool: Any,
) -> Links:
    async def make() -> Links:
        situation = Situation(
            section=parse_config({"mempool": mempool}).mempool,
            clock=ManualClock(),
            host="127.0.0.1",
            fabric=fabric,
            job=job,
        )
        return make_links(role, Peers(), situation)

    links = asyncio.run(make())
    links.close()
    return links


def names(links: Links) -> list[str]:
    return [transport.name for transport in links.transports]


def test_a_colocated_instance_has_none():
    assert links_of(Role.COLOCATED, fabric=LocalFabric()) is NO_LINKS


def test_within_a_process_device_put_moves_kv():
    links = links_of(Role.PREFILL, fabric=LocalFabric())
    assert links.channel is not None
    assert names(links) == ["device_put"]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_between_processes_the_platform_decides_what_is_best(
    platform: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    expected = BETWEEN_PROCESSES.get(platform, BETWEEN_PROCESSES[None])
    assert names(links_of(Role.DECODE)) == list(expected)


def test_within_a_job_collective_is_best():
    assert names(links_of(Role.DECODE, job=JOB))[:2] == [
        "collective",
        BETWEEN_PROCESSES.get(jax.default_backend(), BETWEEN_PROCESSES[None])[0],
    ]
    ordered = ["tcp", "collective"]
    assert names(links_of(Role.DECODE, job=JOB, transports=ordered)) == ordered


def test_collective_without_a_job_is_refused_by_name():
    section = parse_config({"mempool": {"transports": ["tcp", "collective"]}}).mempool
    check_transports(section, JOB)
    with pytest.raises(ConfigError, match=r"transports: got collective, allowed only .* one job"):
        check_transports(section, None)


def test_the_config_limits_and_orders():
    both = ["jax_transfer", "tcp"]
    assert names(links_of(Role.DECODE, transports=both)) == both
    assert names(links_of(Role.DECODE, transports=both[::-1])) == both[::-1]
    assert names(links_of(Role.DECODE, transports=["device_put", "tcp"])) == ["tcp"]
    within = links_of(Role.DECODE, transports=["tcp", "device_put"], fabric=LocalFabric())
    assert names(within) == ["tcp", "device_put"]


def test_none_that_can_be_had_is_an_error():
    with pytest.raises(ConfigError, match=r"mempool.transports: got device_put, .*allowed here"):
        links_of(Role.DECODE, transports=["device_put"])


def test_what_listens_everywhere_is_reached_by_the_machines_address():
    assert reachable_host("10.0.0.1") == "10.0.0.1"
    found = reachable_host("0.0.0.0")
    with socket.create_server((found, 0)) as server:
        socket.create_connection(server.getsockname(), timeout=30.0).close()


def test_with_tls_only_tcp_leaves_the_machine(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    paths = make_authority(tmp_path / "pki").issue("a", "a.test")
    section = SecuritySection(ca=paths.ca, certificate=paths.certificate, key=paths.key)
    tls = credentials_of(section)

    def wanted(host: str, credentials: Credentials, **mempool: Any) -> tuple[str, ...]:
        section = parse_config({"mempool": mempool}).mempool
        situation = Situation(section=section, clock=ManualClock(), host=host, job=JOB)
        return transport_names(situation, credentials)

    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    everything = ("collective", "jax_transfer", "tcp")
    assert wanted("10.0.0.9", tls) == ("tcp",)
    assert "collective, jax_transfer: not used: KV would leave this machine in" in caplog.text
    for transport in ("jax_transfer", "collective"):
        with pytest.raises(ConfigError, match=f"transports: got {transport}, which cannot be enc"):
            wanted("10.0.0.9", tls, transports=["tcp", transport])
    assert wanted("127.0.0.1", tls) == everything
    assert wanted("10.0.0.9", dataclasses.replace(tls, is_insecure=True)) == everything
    assert wanted("10.0.0.9", PLAIN) == everything, "nothing of ours listens there then"
