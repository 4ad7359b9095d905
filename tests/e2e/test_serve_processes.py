"""`memserve serve --processes`: what dies comes back, what is told to end ends, all of it."""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from memserve_jax.client import ClientError
from memserve_jax.core.malloc import TUNABLES
from tests.helpers.goldens import load_golden
from tests.helpers.processes import (
    PATIENCE_S,
    ROOT,
    ServedProcesses,
    memserve,
    refusal,
    served_processes,
    settings,
)

GOLDEN = load_golden("llama3")
GREEDY = {"temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}
PAUSE = threading.Event()  # never set: to look again in a moment
LOOK_S = 0.05


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def until(claim: Callable[[], bool]) -> None:
    """Returns when `claim` holds; pytest's time-out ends a test in which it never does."""
    while not claim():
        PAUSE.wait(LOOK_S)


def assert_serves(served: ServedProcesses) -> None:
    answer = served.client.generate(token_ids=GOLDEN.prompts[2], max_tokens=24, **GREEDY)
    assert list(answer.token_ids) == GOLDEN.tokens[2]


def is_whole(served: ServedProcesses, names: set[str]) -> bool:
    """Whether the scheduler answers, and knows all of `names` as serving."""
    with contextlib.suppress(ClientError):
        return {
            name for name, status in served.statuses().items() if status.state == "serving"
        } == names
    return False


def epoch_of(served: ServedProcesses, name: str) -> int:
    """Returns the epoch of an instance; 0 while the scheduler knows none of that name."""
    status = served.statuses().get(name)
    return status.epoch if status else 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcesses]:
    folder = tmp_path_factory.mktemp("serve")
    with served_processes(GOLDEN.path, "--topology", "1p2d", folder=folder) as cluster:
        yield cluster


def test_every_instance_is_a_process_with_its_own_devices(served: ServedProcesses):
    assert set(served.children) == {"scheduler", "p0", "d0", "d1"}
    for name, pid in served.children.items():
        text = pathlib.Path(f"/proc/{pid}/environ").read_text()
        environment = text.split("\0")
        # glibc 2.36 ends each setting where the kernel sees it, so one variable looks like four.
        tunables = text.replace("GLIBC_TUNABLES=", "").replace(":", "\0").split("\0")
        assert {f"{name}={value}" for name, value in TUNABLES.items()} <= set(tunables)
        assert ("JAX_NUM_CPU_DEVICES=1" in environment) == (name != "scheduler")
    assert_serves(served)
    statuses = served.statuses()
    moved = [entry for status in statuses.values() for entry in status.transports if entry.calls]
    assert moved
    assert sum(entry.bytes for entry in moved) == sum(
        status.counters.kv_bytes_sent for status in statuses.values()
    )
    log = served.serve.log
    assert "\nd1: " in log
    assert "Traceback" not in log


def test_an_instance_that_dies_comes_back_while_the_others_serve(served: ServedProcesses):
    epoch = served.statuses()["d1"].epoch
    pid = served.children["d1"]
    os.kill(pid, signal.SIGKILL)
    while epoch_of(served, "d1") <= epoch:
        with contextlib.suppress(ClientError):  # routed to d1 before its end was noticed
            assert_serves(served)
    assert served.children["d1"] != pid
    until(lambda: is_whole(served, {"p0", "d0", "d1"}))
    for _ in range(4):
        assert_serves(served)
    assert f"d1 (pid {pid}) died of SIGKILL; starting it again" in served.serve.log
    served.settle()


def test_a_scheduler_that_dies_comes_back_on_its_port(served: ServedProcesses):
    pid = served.children["scheduler"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: served.children.get("scheduler", pid) != pid)
    until(lambda: is_whole(served, {"p0", "d0", "d1"}))
    assert_serves(served)
    served.settle()


def role(served: ServedProcesses, name: str, role: str) -> subprocess.Popen[str]:
    """Starts `memserve role`."""
    return subprocess.Popen(
        [sys.executable, "-m", "memserve_jax.cli", "role", name, role, "--target", served.target],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_instance_takes_another_role_in_the_process_it_has(served: ServedProcesses):
    until(lambda: is_whole(served, {"p0", "d0", "d1"}))
    before, pids = served.statuses()["d1"], served.children
    with role(served, "p0", "decode") as refused:
        out, err = refused.communicate(timeout=PATIENCE_S)
    assert (refused.returncode, out) == (1, "")
    assert "p0 is the last prefill instance that serves" in err

    stream = served.client.stream(token_ids=GOLDEN.prompts[2], max_tokens=300, **GREEDY)
    tokens = [*next(stream).token_ids]
    with role(served, "d1", "prefill") as changing:
        for chunk in stream:
            tokens += chunk.token_ids
        out, err = changing.communicate(timeout=PATIENCE_S)
    wanted = (0, "d1 is a prefill instance, caching pd_caching_3\n")
    assert (changing.returncode, out) == wanted, err
    assert (len(tokens), tokens[:24]) == (300, GOLDEN.tokens[2])

    now = served.statuses()["d1"]
    assert (now.role, now.state, now.target) == ("prefill", "serving", before.target)
    assert now.epoch > before.epoch and served.children == pids
    starts: set[str] = set()
    for salt in itertools.count():
        if starts == {"p0", "d1"}:
            break
        answer = served.client.generate(
            token_ids=GOLDEN.prompts[2], max_tokens=24, cache_salt=f"role-{salt}", **GREEDY
        )
        assert list(answer.token_ids) == GOLDEN.tokens[2]
        assert answer.timing.decode_instance == "d0"
        starts.add(answer.timing.prefill_instance)
    served.settle()

    os.kill(pids["d1"], signal.SIGKILL)  # its next life has the role of its command line
    until(lambda: epoch_of(served, "d1") > now.epoch)
    until(lambda: is_whole(served, {"p0", "d0", "d1"}))
    assert served.statuses()["d1"].role == "decode"
    assert_serves(served)


def test_an_instance_that_is_drained_stays_away(served: ServedProcesses):
    served.client.drain("d1")
    until(lambda: "d1" not in served.children)
    until(lambda: "d1 (pid" in served.serve.log and "has left" in served.serve.log)
    assert_serves(served)
    assert set(served.statuses()) == {"p0", "d0"}


def test_a_signal_lets_requests_end_and_leaves_no_process(served: ServedProcesses):
    children = served.children
    stream = served.client.stream(token_ids=GOLDEN.prompts[2], max_tokens=200, **GREEDY)
    head = next(stream)
    served.serve.popen.send_signal(signal.SIGTERM)
    tail = [token for chunk in stream for token in chunk.token_ids]
    assert len(head.token_ids) + len(tail) == 200
    assert served.serve.end() == (0, "")
    assert not any(is_alive(pid) for pid in children.values())


def test_no_process_survives_the_one_that_looks_after_it(tmp_path: pathlib.Path):
    with served_processes(GOLDEN.path, folder=tmp_path) as served:
        children = served.children
        assert set(children) == {"scheduler", "c0"}
        os.kill(children["c0"], signal.SIGSTOP)
        served.serve.end(signal.SIGKILL)
        until(lambda: not any(is_alive(pid) for pid in children.values()))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--model", "/nowhere"], "/nowhere"),
        (["--set", "engine.max_context_tokens=4096"], "max_context_tokens: got 4096"),
        (["--topology", "3x"], "topology: got '3x', allowed"),
        (["--port", "PORT"], "port: PORT is in use"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_no_process(
    tmp_path: pathlib.Path, arguments: list[str], names: str
):
    with contextlib.ExitStack() as stack:
        if "PORT" in arguments:
            other = ["scheduler", "--port", "0", "--model", GOLDEN.path]
            target = stack.enter_context(memserve(*other, log=tmp_path / "other")).target
            port = target.rpartition(":")[2]
            arguments = ["--port", port]
            names = names.replace("PORT", port)
        given = ["--topology", "1p1d", *settings(GOLDEN.path, {}), *arguments]
        refused = refusal("serve", "--processes", *given)
    assert refused.line.startswith("memserve serve: ")
    assert names in refused.line
    started = [words.split(":")[0] for words in refused.log.split(": pid ")[1:]]
    assert not any(is_alive(int(pid)) for pid in started)
