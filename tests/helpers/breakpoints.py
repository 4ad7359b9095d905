"""A `memserve` process that stops where a test says: at a phase of a transfer or of a request.

`run_with_breakpoints` is `memserve`, but whenever something enters a phase it looks for
FOLDER/NAME.PHASE.armed. If that is there, it becomes FOLDER/NAME.PHASE.hit, and the thread that
entered the phase stands still until FOLDER/NAME.PHASE.go is there. A breakpoint is hit once. Phases
are called `transfer.moving`, `reservation.open`, `sequence.running` and so on; `transfer-back.` and
`reservation-back.` are those of KV that goes back from a decode instance. An answer enters
`answer.7` with its seventh token, which has not left the instance then.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from memserve_jax.cli import main
from memserve_jax.engine import sequence as sequences
from memserve_jax.engine.output import Answer
from memserve_jax.mempool.reservation import Reservation
from memserve_jax.mempool.transfer import Transfer

LONGEST_STOP_S = 60.0


class Breakpoints:
    """The test's side: arms, waits for the hit, lets go."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def arm(self, name: str, phase: str) -> None:
        """Has process `name` stop when something next enters `phase`."""
        self._file(name, phase, "armed").touch()

    def wait(self, name: str, phase: str, *, timeout_s: float) -> bool:
        """Returns whether it has been hit in time."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self._file(name, phase, "hit").exists():
                return True
            time.sleep(0.01)
        return False

    def wait_for_one(self, names: Sequence[str], phase: str, *, timeout_s: float) -> str | None:
        """Returns which of the processes has been hit, and disarms the others; None: none was."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for name in names:
                if self._file(name, phase, "hit").exists():
                    for other in names:
                        self._file(other, phase, "armed").unlink(missing_ok=True)
                    return name
            time.sleep(0.01)
        return None

    def go(self) -> None:
        """Lets all that stand still go on."""
        for hit in self._folder.glob("*.hit"):
            hit.with_suffix(".go").touch()

    def clear(self) -> None:
        """Disarms everything."""
        for file in self._folder.iterdir():
            file.unlink(missing_ok=True)

    def _file(self, name: str, phase: str, state: str) -> pathlib.Path:
        return self._folder / f"{name}.{phase}.{state}"


def stop_at(folder: pathlib.Path, name: str, phase: str) -> None:
    """Stands still if a breakpoint is armed for `phase`."""
    armed = folder / f"{name}.{phase}.armed"
    if not armed.exists():
        return
    armed.rename(armed.with_suffix(".hit"))
    go = armed.with_suffix(".go")
    deadline_s = time.monotonic() + LONGEST_STOP_S
    while not go.exists() and time.monotonic() < deadline_s:
        time.sleep(0.005)


def stop_after(
    kind: type, method: str, name_of: Callable[[Any, Any], str], stop: Callable[[str], None]
) -> None:
    """Makes `kind.method(self, phase)` stop after it has done its work."""
    original = getattr(kind, method)

    def stopping(self: Any, phase: Any) -> Any:
        result = original(self, phase)
        stop(name_of(self, phase))
        return result

    setattr(kind, method, stopping)


def stop_when_made(
    kind: type, name_of: Callable[[Any, Any], str], stop: Callable[[str], None]
) -> None:
    """Makes a new `kind` stop in its first phase."""
    original = kind.__init__

    def stopping(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        stop(name_of(self, self.phase))

    kind.__init__ = stopping


def run_with_breakpoints(folder: pathlib.Path, name: str, arguments: Sequence[str]) -> None:
    """Runs `memserve` with breakpoints, in a process of its own."""

    def stop(phase: str) -> None:
        stop_at(folder, name, phase)

    def of_transfer(transfer: Transfer, phase: str) -> str:
        return f"transfer{'-back' if transfer.to.startswith('p') else ''}.{phase}"

    def of_reservation(reservation: Reservation, phase: str) -> str:
        is_back = reservation.call.sender.startswith("d")
        return f"reservation{'-back' if is_back else ''}.{phase}"

    stop_when_made(Transfer, of_transfer, stop)
    stop_when_made(sequences.Sequence, lambda sequence, phase: f"sequence.{phase}", stop)
    stop_after(Transfer, "advance", of_transfer, stop)
    stop_after(Reservation, "advance", of_reservation, stop)
    stop_after(Answer, "push", lambda answer, _: f"answer.{answer.num_tokens}", stop)
    stop_after(sequences.Sequence, "enter", lambda sequence, phase: f"sequence.{phase}", stop)
    main(arguments)
