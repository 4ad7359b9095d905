"""No child outlives the process that looks after it, whatever ends that one. Linux only.

The kernel does it: a signal at the parent's death also ends a child that hangs or is stopped,
which no thread of the child's own could.
"""

import ctypes
import os
import signal
import sys

from memserve_jax.core.errors import ConfigError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def refuse_unless_supported() -> None:
    """Does nothing on Linux.

    Raises:
      ConfigError: this is another system.
    """
    if sys.platform != "linux":
        raise ConfigError(f"--processes: got platform {sys.platform!r}, allowed: linux")


def end_with_parent(parent_pid: int) -> None:
    """Has this process killed when its parent ends; ends it now if that has happened already.

    The thread that started this process must live as long as the parent does: its end counts.

    Args:
      parent_pid: Of the process that started this one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        os._exit(1)
