"""A task knows its request and its trace, and so do the tasks it makes; no other does."""

import asyncio

from memserve_jax.telemetry.request_context import (
    Traced,
    current_request_id,
    current_trace_id,
    outgoing_metadata,
    work_for,
)


def test_tasks_are_kept_apart():
    async def child() -> tuple[str, str]:
        return current_request_id(), current_trace_id()

    async def request(name: str) -> tuple[str, str]:
        work_for(name)
        with Traced(f"trace-{name}", (("traceparent", name),)):
            await asyncio.sleep(0)
            assert outgoing_metadata() == (("traceparent", name),)
            return await asyncio.create_task(child())

    async def scenario() -> None:
        found = await asyncio.gather(request("a"), request("b"))
        assert found == [("a", "trace-a"), ("b", "trace-b")]
        assert (await child(), outgoing_metadata()) == (("", ""), None)

    asyncio.run(scenario())
