"""The HTTP endpoint, asked over a real socket."""

import asyncio
import contextlib
import json
import socket
import urllib.error
import urllib.request

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.telemetry_sections import MetricsSection
from memserve_jax.telemetry import endpoint as endpoint_module
from memserve_jax.telemetry.endpoint import MetricsEndpoint
from memserve_jax.telemetry.metric import Kind, Metric, Reading

GAUGE = Metric(name="memserve_now", kind=Kind.GAUGE, meaning="m", when_bad="b", labels=("x",))


def ask(target: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{target}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextlib.asynccontextmanager
async def listening(**section):
    metrics = MetricsEndpoint(MetricsSection(**section))
    try:
        yield metrics
    finally:
        await metrics.close()


def test_a_scrape_shows_what_the_sources_say_now():
    async def scenario():
        async with listening() as metrics:
            values = {"a": 1}

            def source():
                assert asyncio.get_running_loop()  # read where it lives
                return [Reading(GAUGE, (name,), value) for name, value in values.items()]

            metrics.add([GAUGE], source)
            metrics.add([GAUGE], other := lambda: [Reading(GAUGE, ("b",), 5)])
            code, text = await asyncio.to_thread(ask, metrics.target, "/metrics")
            assert code == 200 and 'memserve_now{x="a"} 1.0' in text
            assert 'memserve_now{x="b"} 5.0' in text and text.count("# TYPE memserve_now ") == 1
            values["a"] = 2
            metrics.remove(other)
            _, text = await asyncio.to_thread(ask, metrics.target, "/metrics")
            assert 'memserve_now{x="a"} 2.0' in text and 'x="b"' not in text

    asyncio.run(scenario())


def test_targets_are_in_the_form_of_prometheus_service_discovery():
    async def scenario():
        async with listening() as metrics:
            code, text = await asyncio.to_thread(ask, metrics.target, "/targets")
            assert json.loads(text) == [{"targets": [metrics.target], "labels": {}}]
            metrics.discover(lambda: ["h:2", "h:1", "h:2"])
            code, text = await asyncio.to_thread(ask, metrics.target, "/targets")
            assert code == 200
            assert json.loads(text) == [{"targets": ["h:1", "h:2"], "labels": {}}]
            code, _ = await asyncio.to_thread(ask, metrics.target, "/")
            assert code == 404

    asyncio.run(scenario())


def test_a_loop_that_hangs_gives_503(monkeypatch):
    monkeypatch.setattr(endpoint_module, "READ_TIMEOUT_S", 0.05)

    async def scenario():
        async with listening() as metrics:
            assert ask(metrics.target, "/metrics")[0] == 503  # in the loop: nobody else can be

    asyncio.run(scenario())


def test_a_source_that_fails_gives_500_and_the_next_scrape_works(caplog):
    async def scenario():
        async with listening() as metrics:
            failures = [KeyError("x")]

            def source():
                if failures:
                    raise failures.pop()
                return [Reading(GAUGE, ("a",), 1)]

            metrics.add([GAUGE], source)
            code, _ = await asyncio.to_thread(ask, metrics.target, "/metrics")
            assert code == 500
            code, _ = await asyncio.to_thread(ask, metrics.target, "/metrics")
            assert code == 200

    asyncio.run(scenario())
    assert "KeyError" in caplog.text


def test_without_a_port_nothing_listens():
    async def scenario():
        async with listening(port=None) as metrics:
            assert metrics.target == ""

    asyncio.run(scenario())


def test_a_port_in_use_is_named():
    async def scenario():
        async with listening() as metrics:
            port = int(metrics.target.rpartition(":")[2])
            with pytest.raises(ConfigError, match=rf"metrics\.port: {port} on 127\.0\.0\.1: .*use"):
                MetricsEndpoint(MetricsSection(port=port))

    asyncio.run(scenario())


def test_a_host_of_elsewhere_is_named():
    async def scenario():
        with pytest.raises(ConfigError, match=r"metrics\.host: 'no\.such\.invalid'"):
            MetricsEndpoint(MetricsSection(host="no.such.invalid"))

    asyncio.run(scenario())


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_and_any_host_have_a_target_to_reach_them_at():
    async def scenario():
        async with listening(host="::1") as metrics:
            assert metrics.target.startswith("[::1]:")
            assert (await asyncio.to_thread(ask, metrics.target, "/metrics"))[0] == 200
        async with listening(host="0.0.0.0") as metrics:
            assert metrics.target.rpartition(":")[0] == socket.gethostname()

    asyncio.run(scenario())


def test_close_ends_the_thread_and_frees_the_port():
    async def scenario():
        metrics = MetricsEndpoint(MetricsSection())
        port = int(metrics.target.rpartition(":")[2])
        await metrics.close()
        await metrics.close()
        async with listening(port=port) as again:
            assert again.target == metrics.target

    asyncio.run(scenario())
