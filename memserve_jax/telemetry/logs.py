"""What a server process writes to stderr: lines for people, or JSON objects for machines.

A JSON line has `timestamp`, `level`, `logger`, `message`, `process`, where there is one the
`request_id` and `trace_id` that the code works for, `exc_info`, and what the call gave as `extra`.
"""

import json
import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from memserve_jax.core.telemetry_sections import LogSection
from memserve_jax.telemetry.request_context import current_request_id, current_trace_id

TEXT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
PACKAGES = ("memserve_jax", "scheduler")
REQUESTS = "scheduler.requests"  # the logger of requests that have ended


def configure_logs(section: LogSection, process: str) -> None:
    """Makes this process log as `section` says; again is the same as once.

    Args:
      section: Format and levels.
      process: Its name in the cluster, such as `scheduler` or `p0`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_context)
    handler.setFormatter(
        _json_formatter(process) if section.format == "json" else logging.Formatter(TEXT)
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    level = section.level.upper()
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level)
    logging.getLogger(REQUESTS).setLevel("INFO" if section.requests else "WARNING")


def passed_on(process: str, line: str, section: LogSection) -> str:
    """Returns a line of a child's stderr as its parent writes it: said by whom, in one format."""
    if section.format == "text":
        return f"{process}: {line}"
    if line.startswith("{"):
        return line
    return json.dumps({"process": process, "message": line}, ensure_ascii=False)


def _json_formatter(process: str) -> logging.Formatter:
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        static_fields={"process": process},
        timestamp=True,
    )


def _add_context(record: logging.LogRecord) -> bool:
    """Tells the record which request it is about, where the code knows."""
    for name, value in (("request_id", current_request_id()), ("trace_id", current_trace_id())):
        if value and not hasattr(record, name):
            setattr(record, name, value)
    return True
