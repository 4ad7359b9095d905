"""What changed between two looks."""

import io

from rich.console import Console, RenderableType

from memserve_jax.cli.watch import Look, rates, silent
from memserve_jax.proto import memserve_pb2 as pb


def shown(what: RenderableType) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=200).print(what)
    return [line.split() for line in out.getvalue().splitlines()]


def look(now_s: float, epoch: int = 1, **counters: int) -> Look:
    status = pb.InstanceStatus(
        instance="p0",
        role="prefill",
        epoch=epoch,
        metrics_target="h:9401",
        counters=pb.Counters(**counters),
    )
    return Look(pb.ClusterStatusReply(instances=[status], metrics_target="h:9400"), now_s)


def test_rates_are_per_second_between_two_looks():
    before = look(10.0, prompt_tokens=100, cached_tokens=50)
    after = look(
        12.0,
        prompt_tokens=300,
        cached_tokens=200,
        prefill_tokens_computed=50,
        output_tokens=4,
        kv_bytes_sent=5_000_000,
    )
    lines = shown(rates(before, after))
    assert ["p0", "75%", "25", "2", "2.5", "0.0", "h:9401"] in lines
    assert lines[-1][-1] == "h:9400"


def test_a_first_look_and_a_new_life_have_no_rates():
    row = ["p0", *["-"] * 5, "h:9401"]
    assert row in shown(rates(None, look(1.0)))
    assert row in shown(rates(look(1.0), look(2.0, epoch=2)))


def test_silence_says_why_and_shows_what_was_there():
    lines = shown(silent("h:1", "connection refused", "the table"))
    assert lines[0][:4] == ["h:1", "does", "not", "answer:"] and lines[1] == ["the", "table"]
