import jax.numpy as jnp
import numpy as np

from memserve_jax.core.clock import ManualClock
from memserve_jax.engine.batcher import Chunk
from memserve_jax.engine.inputs import FROM_DEVICE, Column, RowTable
from memserve_jax.engine.pipeline import Pipeline
from memserve_jax.engine.result_lines import StepResult
from memserve_jax.engine.runner import Runner
from memserve_jax.engine.sequence import Duty, Phase
from memserve_jax.mempool.lease import Lease
from tests.helpers.sequences import make_sequence


class ScriptedRunner(Runner):
    """Samples 100, 101, ... one a step and line; notes what it was asked for."""

    decodes, num_compiled = True, 0

    def __init__(self, rows):
        self.rows, self.asked, self.num_steps = rows, [], 0

    def dispatch_decode(self, rows):
        self.asked.append(("decode", [int(self.rows.lines[row, Column.TOKEN]) for row in rows]))
        return jnp.zeros((len(rows), 1), jnp.int32)

    def dispatch_mixed(self, rows, token_ids, num_tokens, after_group=None):
        self.after_group = after_group
        self.asked.append(("mixed", num_tokens, dict(zip(rows, token_ids, strict=True))))
        return jnp.zeros((self.rows.num_rows, 1), jnp.int32)

    def read(self, step):
        self.num_steps += 1
        tokens = [100 * self.num_steps + line for line in range(step.shape[0])]
        empty = np.zeros((step.shape[0], 2))
        return StepResult(tokens, np.zeros(step.shape[0]), empty, empty)

    def set_history(self, row, prompt, answer):
        raise AssertionError("nobody asked for penalties")


class NotedSteps:
    """A watcher that notes what it was told, in the order of `asked`."""

    def __init__(self, asked):
        self.asked = asked

    def after_group(self, chunks):
        self.asked.append(("watched", [chunk.sequence.num_computed for chunk in chunks]))
        return self

    def await_answers(self, is_ready):
        self.asked.append(("awaited", is_ready()))


class Quiet(NotedSteps):
    """Notes nothing."""

    def __init__(self):
        super().__init__([])


class Blocks(Lease):
    """Stands for a lease."""

    def __init__(self, blocks):
        self.ids = list(blocks)

    @property
    def block_ids(self):
        return list(self.ids)


def make_pipeline(num_rows=3, watcher=None):
    rows = RowTable(num_rows=num_rows, table_width=4)
    clock = ManualClock()
    runner = ScriptedRunner(rows)
    return Pipeline(runner, rows, clock, watcher or Quiet()), runner, rows, clock


def on_row(row, *, order=0, prompt=5, duty=Duty.ANSWER, blocks=(3, 1)):
    sequence = make_sequence(order, prompt=prompt, duty=duty)
    sequence.row, sequence.lease, sequence.num_blocks = row, Blocks(blocks), len(blocks)
    if sequence.phase is Phase.AWAITING_KV:
        sequence.enter(Phase.WAITING)
    sequence.enter(Phase.PREFILLING)
    return sequence


def test_a_step_is_read_when_the_next_one_is_dispatched():
    pipeline, runner, _, _ = make_pipeline()
    sequence = on_row(1)
    assert pipeline.exchange([Chunk(sequence, 5, True)]) == []
    assert runner.asked == [("mixed", 5, {1: [0, 1, 2, 3, 4]})]
    assert sequence.phase is Phase.RUNNING
    assert (sequence.num_computed, sequence.num_unread) == (5, 1)
    [token] = pipeline.exchange([Chunk(sequence, 1, True)])
    assert runner.asked[1] == ("decode", [FROM_DEVICE])
    assert token.token_id == 101  # line 1: mixed results have a line for every row
    assert (sequence.num_computed, sequence.num_unread) == (6, 1)
    [token] = pipeline.drain()
    assert token.token_id == 200  # line 0: decode results have a line for each of its rows
    assert pipeline.is_empty


def test_who_watches_is_asked_before_a_prompt_is_computed_and_before_it_is_read():
    watcher = NotedSteps([])
    pipeline, runner, _, _ = make_pipeline(watcher=watcher)
    sequence = on_row(0)
    pipeline.exchange([Chunk(sequence, 2, False)])
    assert runner.after_group is watcher
    pipeline.exchange([Chunk(sequence, 3, True)])
    pipeline.exchange([Chunk(sequence, 1, True)])  # a decode step: nothing of a prompt in it
    assert watcher.asked == [
        ("watched", [0]),
        ("watched", [2]),
        ("awaited", True),
        ("awaited", True),
    ]


def test_tokens_of_finished_sequences_are_left_out():
    pipeline, _, _, _ = make_pipeline()
    one, other = on_row(0), on_row(2, order=1)
    pipeline.exchange([Chunk(one, 5, True), Chunk(other, 3, False)])
    one.enter(Phase.FINISHED)
    one.row = None
    assert pipeline.drain() == []
    assert other.num_computed == 3
    assert other.phase is Phase.PREFILLING


def test_a_prefill_alone_never_decodes():
    pipeline, _, _, _ = make_pipeline()
    sequence = on_row(0, duty=Duty.PREFILL)
    pipeline.exchange([Chunk(sequence, 5, True)])
    assert sequence.phase is Phase.PREFILLING
    assert not sequence.wants_step


def test_without_decode_steps_single_tokens_take_mixed_ones():
    pipeline, runner, _, _ = make_pipeline()
    runner.decodes = False
    sequence = on_row(0, duty=Duty.PREFILL)
    sequence.num_computed = sequence.num_prompt - 1
    pipeline.exchange([Chunk(sequence, 1, True)])
    assert runner.asked == [("mixed", 1, {0: sequence.token_ids[-1:]})]


def test_kv_that_arrived_goes_on_from_a_token_the_host_knows():
    pipeline, runner, rows, _ = make_pipeline()
    sequence = on_row(0, duty=Duty.DECODE)
    sequence.token_ids.append(42)
    sequence.num_computed = 5
    pipeline.exchange([Chunk(sequence, 1, True)])
    assert runner.asked == [("decode", [42])]
    assert rows.lines[0, Column.POSITION] == 5
    assert pipeline.num_prompt_tokens == 0


def test_block_tables_follow_leases_as_they_grow_and_change():
    pipeline, _, rows, _ = make_pipeline()
    sequence = on_row(0)
    pipeline.exchange([Chunk(sequence, 5, True)])
    assert rows.lines[0, Column.TABLE :].tolist()[:2] == [3, 1]
    sequence.lease.ids.append(9)
    sequence.num_blocks = 3
    pipeline.exchange([Chunk(sequence, 1, True)])
    assert rows.lines[0, Column.TABLE :].tolist()[:3] == [3, 1, 9]
    sequence.lease, sequence.num_blocks = Blocks([8, 7, 6]), 3  # after a preemption
    pipeline.exchange([Chunk(sequence, 1, True)])
    assert rows.lines[0, Column.TABLE :].tolist()[:3] == [8, 7, 6]


def test_queueing_time_and_rate_are_measured():
    pipeline, _, _, clock = make_pipeline()
    sequence = on_row(0)
    clock.advance(2.0)
    pipeline.exchange([Chunk(sequence, 5, True)])
    assert sequence.queue_s == 2.0
    clock.advance(0.5)
    pipeline.drain()
    assert pipeline.prefill_rate.tokens_per_s == 10.0
    assert pipeline.num_prompt_tokens == 5


def test_what_was_compiled_meanwhile_is_no_measure_of_prefills():
    pipeline, runner, _, clock = make_pipeline()
    first, second = on_row(0), on_row(1, order=1)
    pipeline.exchange([Chunk(first, 5, True)])
    runner.num_compiled += 1  # with this step, or with the next one before this one is read
    clock.advance(60.0)
    pipeline.exchange([Chunk(second, 5, True)])
    assert pipeline.prefill_rate.tokens_per_s == 0.0
    clock.advance(0.5)
    pipeline.drain()
    assert pipeline.prefill_rate.tokens_per_s == 10.0
