"""The planner with real processes: roles follow the load there and back, and no answer differs."""

import contextlib
import itertools
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.goldens import load_golden
from tests.helpers.processes import PATIENCE_S, ServedProcesses, served_processes

GOLDEN = load_golden("llama3")
LONG, SHORT = 4, 2  # of the golden: 90 tokens in three chunks, and few
NUM_CLIENTS = 16
RULES = {
    "scheduler.heartbeat_timeout_s": "8",  # before it is over nobody knows who is there
    "scheduler.planner.enabled": "true",
    "scheduler.planner.prefill_wait_s": "0.1",
    "scheduler.planner.decode_wait_s": "0.3",
    "scheduler.planner.idle_usage": "0.9",
    "scheduler.planner.window_s": "1",
    "scheduler.planner.hold_s": "1",
    "scheduler.planner.pause_s": "2",
}


@contextlib.contextmanager
def load(served: ServedProcesses, prompt: int, max_tokens: int) -> Iterator[None]:
    """Keeps clients asking for new answers to one prompt; asserts that each is right."""
    stop, numbers = threading.Event(), itertools.count()
    golden = GOLDEN.tokens[prompt]

    def ask() -> None:
        while not stop.is_set():
            answer = served.client.generate(
                token_ids=GOLDEN.prompts[prompt],
                max_tokens=max_tokens,
                temperature=0.0,
                ignore_eos=True,
                cache_salt=f"{prompt}-{next(numbers)}",
                timeout_s=PATIENCE_S,
            )
            assert len(answer.token_ids) == max_tokens
            assert list(answer.token_ids)[:24] == golden[: min(24, max_tokens)]

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        asking = [pool.submit(ask) for _ in range(NUM_CLIENTS)]
        try:
            yield
        finally:
            stop.set()
        for each in asking:
            each.result(PATIENCE_S)


def until(served: ServedProcesses, claim: Callable[[dict[str, int]], bool]) -> None:
    """Returns when the number of serving instances by role is as claimed."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        reply = served.client.status(timeout_s=PATIENCE_S)
        serving = [each.role for each in reply.instances if each.state == "serving"]
        if claim({role: serving.count(role) for role in ("prefill", "decode")}):
            return
        assert time.monotonic() < deadline_s, f"{reply.planner}\n{served.serve.log[-4000:]}"


@pytest.mark.slow
def test_roles_follow_the_load_there_and_back(tmp_path: pathlib.Path):
    with served_processes(
        GOLDEN.path, "--topology", "1p2d", folder=tmp_path, overrides=RULES
    ) as served:
        pids = served.children
        with load(served, LONG, max_tokens=2):
            until(served, lambda roles: roles == {"prefill": 2, "decode": 1})
        served.settle()
        with load(served, SHORT, max_tokens=200):
            until(served, lambda roles: roles == {"prefill": 1, "decode": 2})
        served.settle()
        planner = served.client.status().planner
        assert planner.moves >= 2 and planner.moves_failed == 0  # one more as a load ended, perhaps
        assert planner.last_move and planner.why
        assert served.children == pids
        log = served.serve.log
        assert " becomes prefill: prefill is short: " in log
        assert " becomes decode: decode is short: " in log
        assert "Traceback" not in log
