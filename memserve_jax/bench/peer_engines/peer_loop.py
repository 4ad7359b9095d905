"""What the peers have in common: JSON lines in, JSON lines out. Imports nothing of ours."""

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(start: Callable[..., Any]) -> None:
    """Starts the engine that the command line describes, and times what stdin asks for.

    Args:
      start: Makes an engine with a `version`; its methods return seconds.
    """
    engine = start(**json.loads(sys.argv[1]))
    _say(version=engine.version)
    for line in sys.stdin:
        call = json.loads(line)
        name = call.pop("call")
        _say(seconds=getattr(engine, name)(**call))


def _say(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
