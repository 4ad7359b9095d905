"""Sequences and a memory of counted blocks, for tests of the batcher."""

from memserve_jax.core.types import Request, RequestId, SamplingParams
from memserve_jax.engine.output import Answer
from memserve_jax.engine.sequence import Duty, Phase, Sequence


class NoText:
    """A text stream that shows nothing."""

    def push(self, token_ids):
        return ""

    def flush(self):
        return ""


def make_sequence(order=0, *, prompt=5, max_tokens=4, priority=0, duty=Duty.ANSWER):
    """Returns a waiting sequence with a prompt of so many tokens."""
    sampling = SamplingParams(max_tokens=max_tokens)
    return Sequence(
        request=Request(
            request_id=RequestId(f"r{order}"),
            session_id="",
            prompt_token_ids=tuple(range(prompt)),
            sampling=sampling,
            priority=priority,
        ),
        duty=duty,
        answer=Answer(sampling, eos_token_ids=frozenset(), max_tokens=max_tokens, stream=NoText()),
        seed=0,
        order=order,
        arrival_s=0.0,
        phase=Phase.AWAITING_KV if duty is Duty.DECODE else Phase.WAITING,
        token_ids=list(range(prompt)),
    )


class CountedLease:
    """Stands for a lease: something that is there or not."""


class CountedMemory:
    """So many blocks of so many tokens; no index, no bytes."""

    def __init__(self, num_blocks, block_size=4):
        self.free, self.size = num_blocks, block_size

    def is_ready(self, sequence):
        return True

    def acquire(self, sequence):
        wanted = -(-min(sequence.num_tokens + 1, sequence.max_kv_tokens) // self.size)
        if wanted - sequence.num_blocks > self.free:
            return False
        self.free -= max(0, wanted - sequence.num_blocks)
        sequence.num_blocks = max(wanted, sequence.num_blocks)
        sequence.lease = sequence.lease or CountedLease()
        return True

    def grow(self, sequence):
        if sequence.num_computed < sequence.num_blocks * self.size:
            return True
        if not self.free:
            return False
        self.free -= 1
        sequence.num_blocks += 1
        return True

    def release(self, sequence):
        self.free += sequence.num_blocks
        sequence.lease, sequence.num_blocks, sequence.num_computed = None, 0, 0

    preempt = release
