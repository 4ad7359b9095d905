"""A process that is killed takes the one it started along."""

import os
import signal
import subprocess
import sys

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.lifeline import refuse_unless_supported

CHILD = """
import os, sys, time
from memserve_jax.launch.lifeline import end_with_parent
end_with_parent(int(sys.argv[1]))
print("bound", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
print(child.pid, flush=True)
time.sleep(600)
"""


def run(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_the_child_dies_with_its_parent(state: str):
    with run(PARENT, CHILD) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "bound\n"
        if state == "stopped":
            os.kill(child, signal.SIGSTOP)
        parent.kill()
        assert parent.stdout.read() == ""  # the pipe has no writer left: the child is gone


def test_a_child_whose_parent_is_gone_already_ends():
    with run(CHILD, "1") as child:
        assert child.wait(timeout=60) == 1
        assert child.stdout is not None
        assert child.stdout.read() == ""


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch):
    refuse_unless_supported()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="--processes: got platform 'darwin', allowed: linux"):
        refuse_unless_supported()
