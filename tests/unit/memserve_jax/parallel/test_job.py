"""What `--job` may say. Joining one is met with real processes, in tests/e2e."""

import subprocess
import sys

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.parallel.job import FAILED, Job


@pytest.mark.parametrize(
    ("text", "coordinator"), [("h:4000,1,2", "h:4000"), ("[::1]:4000,1,2", "[::1]:4000")]
)
def test_text_becomes_a_job(text: str, coordinator: str):
    assert Job.from_text(text) == Job(coordinator=coordinator, process=1, num_processes=2)


@pytest.mark.parametrize(
    "text",
    [
        *("", "h:1", "h:1,0", "h:1,0,1,2"),
        *("h:1,0,0", "h:1,2,2", "h:1,-1,2", "h:1,a,2"),
        *("h,0,1", ":1,0,1", "h:0,0,1", "h:x,0,1", "h:65536,0,1"),
    ],
)
def test_anything_else_is_refused(text: str):
    with pytest.raises(ConfigError, match=r"--job: got .*, allowed: HOST:PORT,INDEX,COUNT"):
        Job.from_text(text)


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [("fail_job('p0 is gone')", FAILED, "the job ends: p0 is gone"), ("leave_job()", 0, "")],
)
def test_a_process_ends_at_once(call: str, status: int, words: str):
    program = f"from memserve_jax.parallel.job import *; {call}; print('still here')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
