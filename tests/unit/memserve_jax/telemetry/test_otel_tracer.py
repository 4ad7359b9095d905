"""Spans as files: parents, times, what is sent on."""

import asyncio
import contextlib
import pathlib

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.telemetry_sections import TracingSection
from memserve_jax.telemetry.request_context import (
    current_trace_id,
    outgoing_metadata,
    work_for,
)
from memserve_jax.telemetry.tracing import Tracer, open_tracer
from tests.helpers.spans import Span, read_spans, trees

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Call:
    """A servicer's context, as far as a tracer looks."""

    def __init__(self, *metadata: tuple[str, str]):
        self.metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata


def recorded(folder: pathlib.Path, body, **section: object) -> list[Span]:
    """Returns the roots of what `body(tracer)` recorded."""
    tracer = open_tracer(TracingSection(exporter="file", folder=str(folder), **section), "p0")
    assert isinstance(tracer, Tracer)

    async def scenario() -> None:
        await body(tracer)

    try:
        asyncio.run(scenario())
    finally:
        tracer.close()
    return trees(read_spans(folder))


def test_spans_nest_within_a_task_and_the_tasks_it_makes(tmp_path: pathlib.Path):
    async def body(tracer: Tracer) -> None:
        async def below() -> None:
            with tracer.span("call_prefill", calls=True) as span:
                span.set({"memserve.prefill_instance": "p0"})

        with tracer.serve("answer", Call()):
            work_for("r1")
            await asyncio.create_task(below())
            tracer.past("decode", {"n": 3}, began_s=0.0)
        assert outgoing_metadata() is None and current_trace_id() == ""

    (root,) = recorded(tmp_path, body)
    assert root.shape() == ("answer", ("call_prefill",), ("decode",))
    assert [child.kind for child in root.children] == ["CLIENT", "INTERNAL"]
    assert root.find("decode")[0].attributes == {"memserve.request_id": "r1", "n": 3}
    assert root.process == "memserve-p0" and root.kind == "SERVER"
    root.check_nested()


def test_a_callers_trace_goes_on_and_is_handed_on(tmp_path: pathlib.Path):
    sent: list[str] = []

    async def body(tracer: Tracer) -> None:
        with tracer.serve("request", Call(("traceparent", f"00-{TRACE}-{CALLER}-01"))):
            assert current_trace_id() == TRACE
            sent.extend(value for _, value in outgoing_metadata() or ())

    (root,) = recorded(tmp_path, body)
    assert (root.trace_id, root.parent_id) == (TRACE, CALLER)
    assert sent == [f"00-{TRACE}-{root.span_id}-01"]


def test_a_broken_traceparent_begins_a_new_trace(tmp_path: pathlib.Path):
    async def body(tracer: Tracer) -> None:
        with tracer.serve("request", Call(("traceparent", "00-zz-1-01"), ("x-bin", "y"))):
            pass

    (root,) = recorded(tmp_path, body)
    assert root.parent_id is None


def test_what_began_before_its_parent_is_cut(tmp_path: pathlib.Path):
    async def body(tracer: Tracer) -> None:
        with tracer.serve("prefill", Call()):
            tracer.past("queue", {}, began_s=1000.0, ended_s=999.0)

    (root,) = recorded(tmp_path, body)
    root.check_nested()


def test_errors_and_cancellation_are_told_apart(tmp_path: pathlib.Path):
    async def body(tracer: Tracer) -> None:
        for error in (KeyError("x"), asyncio.CancelledError()):
            with (
                contextlib.suppress(KeyError, asyncio.CancelledError),
                tracer.serve(type(error).__name__, Call()),
            ):
                raise error

    found = {root.name: root for root in recorded(tmp_path, body)}
    assert found["KeyError"].status == "ERROR"
    assert found["CancelledError"].status == "UNSET"
    assert found["CancelledError"].attributes["memserve.cancelled"] is True


def test_requests_that_come_untraced_are_sampled(tmp_path: pathlib.Path):
    async def body(tracer: Tracer) -> None:
        with tracer.serve("untraced", Call()):
            tracer.past("queue", {}, began_s=0.0)
        with tracer.serve("traced", Call(("traceparent", f"00-{TRACE}-{CALLER}-01"))):
            pass

    assert [root.name for root in recorded(tmp_path, body, sample_ratio=0.0)] == ["traced"]


def test_a_folder_that_cannot_be_is_named(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"tracing\.folder: "):
        open_tracer(TracingSection(exporter="file", folder=str(tmp_path / "file")), "p0")
