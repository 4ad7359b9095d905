"""Something read from files, and read again once they have changed: what rotation needs."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from memserve_jax.core.errors import ConfigError

_T = TypeVar("_T")
_Stamp = tuple[tuple[int, int, int], ...]

_log = logging.getLogger(__name__)


class WatchedFiles(Generic[_T]):
    """The last good reading of some files. Any thread may ask.

    Asking costs a `stat` of each. Files that cannot be read, or do not fit together (one of a
    pair has been replaced, the other not yet), change nothing: what was read before holds.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], _T]):
        """Reads them.

        Args:
          paths: The files.
          read: Returns what they say, or raises ConfigError.

        Raises:
          ConfigError: what `read` raises, now; later that is logged.
        """
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = read()
        self._version = 0

    def value(self) -> _T:
        """Returns what the files say now."""
        self._refresh()
        return self._value

    def version(self) -> int:
        """Returns how often they have changed."""
        self._refresh()
        return self._version

    def _refresh(self) -> None:
        if self._look() == self._stamp:
            return
        with self._lock:
            stamp = self._look()  # before reading: a change meanwhile is seen next time
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._value = self._read()
            except ConfigError as error:
                _log.warning("%s; what was read before holds", error)
                return
            self._version += 1
            _log.info("read again: %s", ", ".join(self._paths))

    def _look(self) -> _Stamp:
        return tuple(_stamp_of(path) for path in self._paths)


def _stamp_of(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
