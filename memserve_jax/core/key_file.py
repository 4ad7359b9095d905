"""Keys that callers show, from a file. They are compared by digest, never logged, never sent back.

A line is `KEY` or `KEY LABEL`; empty lines and those that begin with # say nothing.
"""

import hashlib
import hmac
import pathlib
import re
from dataclasses import dataclass, field

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.watched_files import WatchedFiles

MIN_KEY_CHARACTERS, MAX_KEY_CHARACTERS = 16, 512

_KEY = re.compile(rf"[\x21-\x7e]{{{MIN_KEY_CHARACTERS},{MAX_KEY_CHARACTERS}}}")
_LABEL = re.compile(r"[A-Za-z0-9._@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key."""

    secret: str = field(repr=False)
    label: str  # who has it; for logs
    digest: bytes = field(repr=False)


class KeyFile:
    """The keys in a file, as it is now. Any thread may ask."""

    def __init__(self, path: str, *, source: str):
        """Reads it.

        Args:
          path: Of the file.
          source: The config key or flag that names it, for errors.

        Raises:
          ConfigError: it cannot be read, or holds no key or something else.
        """
        self._keys = WatchedFiles((path,), lambda: _read(path, source))

    def first(self) -> str:
        """Returns the key to show to others."""
        return self._keys.value()[0].secret

    def all(self) -> tuple[Key, ...]:
        """Returns every key, as listed."""
        return self._keys.value()

    def label_of(self, secret: str) -> str | None:
        """Returns the label of a key that was shown; None where it is none of these.

        The time it takes says nothing of the keys: all are compared, by digests.
        """
        shown = digest_of(secret)
        found = None
        for key in self._keys.value():
            if hmac.compare_digest(key.digest, shown):
                found = key.label
        return found


def digest_of(secret: str) -> bytes:
    """Returns what stands for a key in comparisons."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _read(path: str, source: str) -> tuple[Key, ...]:
    try:
        text = pathlib.Path(path).read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{source}: {path}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: {path}: not ASCII, allowed: KEY [LABEL] a line") from None
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        secret, label = words[0], words[1] if len(words) > 1 else f"line-{number}"
        # What is wrong is not shown: it may be a key with a typing error.
        if len(words) > 2 or not _LABEL.fullmatch(label) or not _KEY.fullmatch(secret):
            raise ConfigError(
                f"{source}: {path}: line {number}: allowed: KEY [LABEL], a key of "
                f"{MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} visible characters"
            )
        keys.append(Key(secret, label, digest_of(secret)))
    if not keys:
        raise ConfigError(f"{source}: {path}: no key in it, allowed: KEY [LABEL] a line")
    return tuple(keys)
