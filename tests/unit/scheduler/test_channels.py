"""One channel a target, and a fresh one after the old was dropped."""

from scheduler.channels import Channels
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import in_loop, prompt


def test_lines_are_shared_until_dropped():
    async def scenario():
        async with FakeInstance("c0") as fake:
            channels = Channels()
            line = channels.to(fake.status.target)
            assert channels.to(fake.status.target) is line
            assert [m async for m in line.generate.Generate(prompt(1), timeout=10)]
            channels.drop(fake.status.target)
            channels.drop("127.0.0.1:1")
            again = channels.to(fake.status.target)
            assert again is not line
            assert [m async for m in again.generate.Generate(prompt(1), timeout=10)]
            await channels.close()

    in_loop(scenario())
