"""What goes to stderr, line by line."""

import json
import logging
from collections.abc import Iterator

import pytest

from memserve_jax.core.telemetry_sections import LogSection
from memserve_jax.telemetry.logs import PACKAGES, REQUESTS, configure_logs, passed_on
from memserve_jax.telemetry.request_context import Traced, work_for
from tests.helpers.scheduling import in_loop


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    names = ("", *PACKAGES, REQUESTS)
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_json_lines_name_process_request_and_trace(capsys: pytest.CaptureFixture[str]):
    configure_logs(LogSection(format="json"), "p0")

    async def scenario():
        log = logging.getLogger("memserve_jax.x")
        log.info("before")
        work_for("r1")
        with Traced("ab" * 16, ()):
            log.warning("got %d\n%s", 3, "ü", extra={"memserve.tokens": 5})
        try:
            raise KeyError("k")
        except KeyError:
            log.exception("after")

    in_loop(scenario())
    before, within, after = map(json.loads, capsys.readouterr().err.splitlines())
    assert before["message"] == "before" and before["level"] == "INFO"
    assert (before["process"], before["logger"]) == ("p0", "memserve_jax.x")
    assert "request_id" not in before and "trace_id" not in before
    assert (within["message"], within["memserve.tokens"]) == ("got 3\nü", 5)
    assert (within["request_id"], within["trace_id"]) == ("r1", "ab" * 16)
    assert after["request_id"] == "r1" and "trace_id" not in after
    assert "KeyError" in after["exc_info"]


def test_text_lines_are_as_ever_and_levels_hold(capsys: pytest.CaptureFixture[str]):
    configure_logs(LogSection(), "p0")
    configure_logs(LogSection(level="warning"), "p0")
    logging.getLogger("scheduler.x").info("too quiet")
    logging.getLogger("scheduler.x").warning("heard")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" W scheduler.x: heard")


@pytest.mark.parametrize("wanted", [False, True])
def test_requests_are_logged_where_asked_for(wanted: bool, capsys: pytest.CaptureFixture[str]):
    configure_logs(LogSection(requests=wanted), "scheduler")
    logging.getLogger(REQUESTS).info("r: answered")
    assert ("r: answered" in capsys.readouterr().err) == wanted


def test_a_childs_line_is_passed_on_in_the_format_of_its_parent():
    assert passed_on("p0", "a line", LogSection()) == "p0: a line"
    json_lines = LogSection(format="json")
    assert passed_on("p0", '{"message": "m"}', json_lines) == '{"message": "m"}'
    assert json.loads(passed_on("p0", "a trace\tback", json_lines)) == {
        "process": "p0",
        "message": "a trace\tback",
    }
