"""How glibc hands out large arrays of jax: copies on the CPU are up to ten times as fast.

Staging buffers come and go with every transfer. Given back to the system and asked for again,
they are zeroed page by page each time, which costs more than the copy itself. glibc reads the
settings when a process starts, so the environment must say them before.
"""

import os
import sys
from collections.abc import Mapping

_VARIABLE = "GLIBC_TUNABLES"
_KEPT_BYTES = 1 << 30
TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # 2 MB pages
    "glibc.malloc.mmap_threshold": _KEPT_BYTES,  # what is smaller comes from what was freed before
    "glibc.malloc.trim_threshold": _KEPT_BYTES,  # of which so much is kept
    "glibc.malloc.arena_max": 1,  # threads' own arenas cannot hold arrays beyond 64 MiB
}


def with_tunables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` with glibc told; what it says of a setting already stays as it is."""
    found = environment.get(_VARIABLE, "")
    wanted = [f"{name}={value}" for name, value in TUNABLES.items() if name not in found]
    if not wanted:
        return dict(environment)
    return {**environment, _VARIABLE: ":".join(filter(None, (found, *wanted)))}


def restart_with_tunables() -> None:
    """Replaces this process by one that has them: same id, same command line, same streams.

    Does nothing where they are set already, or where the C library is another one.
    """
    wanted = with_tunables(os.environ)
    if wanted == dict(os.environ) or not _is_glibc():
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def _is_glibc() -> bool:
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return False
    return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
