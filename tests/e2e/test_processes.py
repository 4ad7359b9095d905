"""The commands as a user runs them: real processes, real signals, exit codes."""

import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from memserve_jax.cli import main
from memserve_jax.client import Client, ClientError
from tests.helpers.goldens import load_golden
from tests.helpers.processes import PATIENCE_S, ROOT, memserve

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


def refused(arguments: Sequence[str]) -> str:
    """Returns the one line of a process that must exit 2."""
    done = subprocess.run(
        [sys.executable, "-m", "memserve_jax.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("memserve")]
    return line


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
    scheduler_arguments = [
        "scheduler",
        "--port",
        "0",
        "--model",
        GOLDEN.path,
        "--set",
        "scheduler.heartbeat_s=0.1",
        "--set",
        "scheduler.heartbeat_timeout_s=3",
    ]
    with memserve(*scheduler_arguments, log=tmp_path / "scheduler") as scheduler:
        arguments = ["instance", "--name", "c0", "--role", "colocated"]
        arguments += ["--scheduler", scheduler.target, *SMALL]
        with Client(scheduler.target) as client:
            with memserve(*arguments, log=tmp_path / "first") as instance:
                assert instance.line.startswith("ready instance=c0 grpc=127.0.0.1:")
                answer = client.generate(token_ids=GOLDEN.prompts[2], **GREEDY)
                assert list(answer.token_ids) == GOLDEN.tokens[2]
                stream = client.stream(token_ids=GOLDEN.prompts[2], **{**GREEDY, "max_tokens": 900})
                next(stream)
                instance.end(signal.SIGKILL)
                with pytest.raises(ClientError) as caught:
                    list(stream)
                assert caught.value.code == "UNAVAILABLE"
            with pytest.raises(ClientError) as caught:
                client.generate(token_ids=GOLDEN.prompts[2], **GREEDY)
            assert caught.value.code == "UNAVAILABLE"
            with memserve(*arguments, log=tmp_path / "second") as instance:  # the same name again
                answer = client.generate(token_ids=GOLDEN.prompts[2], **GREEDY)
                assert list(answer.token_ids) == GOLDEN.tokens[2]
                client.drain("c0", force=True)
                assert instance.popen.wait(PATIENCE_S) == 0  # drained: it ends by itself
            assert not client.status().instances
        assert scheduler.end() == (0, "")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["serve", "--topology", "4x"], "topology: got '4x', allowed"),
        (["serve", "--caching", "pd_basic"], "caching: got 'pd_basic', allowed"),
        (["serve", "--model", "/nowhere"], "/nowhere"),
        (["serve", "--config", "/nowhere.yaml"], "/nowhere.yaml: cannot read"),
        (["serve", "--set", "engine.chunk_token=3"], "did you mean chunk_tokens?"),
        (["serve", "--port", "99999"], "port: got 99999"),
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


def test_a_port_in_use_ends_the_process_with_2(tmp_path: pathlib.Path):
    scheduler = ["scheduler", "--port", "0", "--model", GOLDEN.path]
    with memserve(*scheduler, log=tmp_path / "scheduler") as first:
        port = first.target.rpartition(":")[2]
        assert f"port: {port} is in use" in refused(["serve", "--port", port, *SMALL])


def test_an_instance_that_its_scheduler_refuses_exits_2(tmp_path: pathlib.Path):
    scheduler = ["scheduler", "--port", "0", "--model", GOLDEN.path]
    with memserve(*scheduler, log=tmp_path / "scheduler") as process:
        instance = ["instance", "--role", "colocated", "--scheduler", process.target, *SMALL]
        with memserve(*instance, "--name", "c0", log=tmp_path / "c0"):
            other = ["--name", "c1", "--set", "mempool.block_size_tokens=8"]
            assert "block_size_tokens" in refused([*instance, *other])
