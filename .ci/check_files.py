"""Complains about large files, trailing blanks and missing line ends, for pre-commit."""

import pathlib
import sys

MAX_BYTES = 512 * 1024


def problem(path: pathlib.Path) -> str | None:
    """Returns what is wrong with a text file, None if nothing."""
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        return f"{len(content)} bytes, allowed: {MAX_BYTES}"
    if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        return "does not end with exactly one line end"
    for number, line in enumerate(content.splitlines(), 1):
        if line != line.rstrip():
            return f"line {number} ends with blanks"
    return None


if __name__ == "__main__":
    found = [(name, problem(pathlib.Path(name))) for name in sys.argv[1:]]
    for name, text in found:
        if text:
            sys.stderr.write(f"{name}: {text}\n")
    sys.exit(any(text for _, text in found))
