"""The commands as a user runs them: real processes, real signals, exit codes."""

import contextlib
import pathlib
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from memserve_jax.cli import main
from memserve_jax.client import Client, ClientError
from tests.helpers.goldens import load_golden
from tests.helpers.processes import (
    PATIENCE_S,
    ROOT,
    ProcessCluster,
    memserve,
    process_cluster,
    refusal,
    settings,
)
from tests.helpers.tiny import tiny_checkpoint

GOLDEN = load_golden("llama3")
SMALL = [  # what a process must be told so that it starts quickly
    "--model",
    GOLDEN.path,
    "--set",
    "engine.warm_up=false",
    "--set",
    "engine.max_running=2",
    "--set",
    "engine.chunk_tokens=16",
    "--set",
    "mempool.hbm_blocks=64",
    "--set",
    f"engine.compile_cache={ROOT / 'build' / 'jax_cache'}",
]
GREEDY = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}


def assert_serves(client: Client) -> None:
    answer = client.generate(token_ids=GOLDEN.prompts[2], **GREEDY)
    assert list(answer.token_ids) == GOLDEN.tokens[2]


def until_known(cluster: ProcessCluster, name: str) -> None:
    """Returns when the scheduler has been told of an instance again."""
    while True:
        with contextlib.suppress(ClientError):
            if name in cluster.statuses():
                return


def test_serve_answers_and_ends_gently(tmp_path: pathlib.Path):
    arguments = ["serve", "--topology", "1p1d", "--port", "0", *SMALL]
    with memserve(*arguments, log=tmp_path / "log") as serve:
        assert serve.line.startswith("ready grpc=127.0.0.1:")
        with Client(serve.target) as client:
            answer = client.generate(token_ids=GOLDEN.prompts[2], **GREEDY)
            assert list(answer.token_ids) == GOLDEN.tokens[2]
            assert (answer.timing.prefill_instance, answer.timing.decode_instance) == ("p0", "d0")
            client.quiesce()
            stream = client.stream(token_ids=GOLDEN.prompts[2], **{**GREEDY, "max_tokens": 200})
            head = next(stream)
            serve.popen.send_signal(signal.SIGTERM)
            tail = [token for chunk in stream for token in chunk.token_ids]
            assert len(head.token_ids) + len(tail) == 200  # what is under way is finished
        assert serve.end() == (0, "")
    log = (tmp_path / "log").read_text()
    assert "KV capacity 1024 tokens" in log
    assert log.count("config:") == 1
    assert "Traceback" not in log


def test_a_scheduler_outlives_its_instance(tmp_path: pathlib.Path):
    nobody_comes = {"scheduler.replay_wait_s": 0.5}
    with process_cluster(
        GOLDEN.path, "colocated", folder=tmp_path, overrides=nobody_comes
    ) as cluster:
        client = cluster.client
        assert cluster["c0"].line.startswith("ready instance=c0 grpc=127.0.0.1:")
        assert_serves(client)
        stream = client.stream(token_ids=GOLDEN.prompts[2], **{**GREEDY, "max_tokens": 900})
        next(stream)
        cluster.kill("c0")
        with pytest.raises(ClientError) as caught:
            list(stream)
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(ClientError) as caught:
            client.generate(token_ids=GOLDEN.prompts[2], **GREEDY)
        assert caught.value.code == "UNAVAILABLE"
        cluster.restart("c0")  # the same name again
        assert_serves(client)
        cluster.kill("scheduler")
        cluster.restart("scheduler")
        until_known(cluster, "c0")
        assert_serves(client)
        client.drain("c0", force=True)
        assert cluster["c0"].wait() == 0  # drained: it ends by itself
        assert not client.status().instances
        assert cluster.scheduler.end() == (0, "")


def test_a_cache_survives_a_planned_restart(tmp_path: pathlib.Path):
    disk = {"mempool.disk_gb": 0.01, "mempool.disk_path": str(tmp_path / "kv")}
    with process_cluster(GOLDEN.path, "colocated", folder=tmp_path, overrides=disk) as cluster:
        first = cluster.client.generate(token_ids=GOLDEN.prompts[4], **GREEDY)
        assert first.usage.cached_tokens == 0
        assert cluster["c0"].end() == (0, "")
        cluster.restart("c0")
        again = cluster.client.generate(token_ids=GOLDEN.prompts[4], **GREEDY)
        assert again.usage.cached_tokens == 80  # of 90 tokens: five whole blocks
        assert list(first.token_ids) == list(again.token_ids) == GOLDEN.tokens[4]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["serve", "--topology", "4x"], "topology: got '4x', allowed"),
        (["serve", "--caching", "pd_basic"], "caching: got 'pd_basic', allowed"),
        (["serve", "--model", "/nowhere"], "/nowhere"),
        (["serve", "--config", "/nowhere.yaml"], "/nowhere.yaml: cannot read"),
        (["serve", "--set", "engine.chunk_token=3"], "did you mean chunk_tokens?"),
        (["serve", "--port", "99999"], "port: got 99999"),
        (
            ["serve", "--set", "mempool.transports=[collective]"],
            "mempool.transports: got collective, allowed only between the processes of one job",
        ),
        (
            [
                *("instance", "--name", "c0", "--role", "colocated", "--scheduler", "x:1"),
                *("--set", "mempool.transports=[tcp,collective]"),
            ],
            "mempool.transports: got collective, allowed only between the processes of one job",
        ),
        (
            [
                *("instance", "--name", "c0", "--role", "colocated", "--scheduler", "x:1"),
                *("--job", "h:1,2,2"),
            ],
            "--job: got 'h:1,2,2', allowed: HOST:PORT,INDEX,COUNT",
        ),
        (["serve", "--no-such-flag"], "--no-such-flag"),
        (
            [
                "instance",
                "--name",
                "p0",
                "--role",
                "prefill",
                "--caching",
                "on",
                "--scheduler",
                "x:1",
            ],
            "caching: got 'on', allowed with prefill and decode instances",
        ),
        (
            ["instance", "--name", "a b", "--role", "colocated", "--scheduler", "127.0.0.1:1"],
            "--name: got 'a b', allowed",
        ),
    ],
)
def test_a_command_that_cannot_be_says_why_and_exits_2(
    arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"memserve {arguments[0]}")
    assert names in line


def test_a_scheduler_refuses_what_does_not_fit_and_goes_on(tmp_path: pathlib.Path):
    other = tiny_checkpoint(tmp_path / "other")
    with process_cluster(GOLDEN.path, "colocated", folder=tmp_path) as cluster:
        port = cluster.target.rpartition(":")[2]
        instance = ["instance", "--name", "c1", "--role", "colocated"]
        instance += ["--scheduler", cluster.target, *settings(GOLDEN.path, {})]
        wrong = {
            "block_size_tokens": [*instance, "--set", "mempool.block_size_tokens=8"],
            "status.caching": [*instance, "--caching", "off"],
            "status.model: c1 has 'other', allowed: 'llama3'": [*instance, "--model", other],
            f"port: {port} is in use": ["serve", "--port", port, *SMALL],
        }
        with ThreadPoolExecutor(len(wrong)) as pool:
            refused = list(pool.map(lambda arguments: refusal(*arguments), wrong.values()))
        for names, found in zip(wrong, refused, strict=True):
            assert names in found.line
        assert_serves(cluster.client)
        assert set(cluster.statuses()) == {"c0"}
