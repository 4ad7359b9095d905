"""Calls to peers: whatever happens, the answer comes to the owner, once, as a future."""

from concurrent.futures import CancelledError, Future

import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.calls import PeerCalls, error_of, started
from memserve_jax.mempool.control import ReserveAnswer, ReserveCall
from memserve_jax.mempool.inbox import Inbox

CALL = ReserveCall(
    transfer_id="t",
    sender="p0",
    sender_epoch=1,
    receiver_epoch=None,
    token_ids=(),
    num_blocks=1,
    insert=False,
    timeout_s=2.0,
)


class Channel:
    """Every call is kept, and answered by the test."""

    def __init__(self):
        self.calls, self.future = [], Future()

    def reserve(self, to, call, *, timeout_s):
        self.calls.append(("reserve", to, timeout_s))
        return self.future

    def commit(self, to, transfer_id, *, timeout_s):
        self.calls.append(("commit", to, timeout_s))
        return self.future

    def abort(self, to, transfer_id, reason):
        self.calls.append(("abort", to, reason))
        raise OSError("the wire is cut")

    def fetch(self, owner, call, *, timeout_s):
        self.calls.append(("fetch", owner, timeout_s))
        return self.future


@pytest.fixture
def inbox():
    return Inbox(lambda: None)


def test_answers_come_on_the_owners_thread(inbox):
    channel, answers = Channel(), []
    calls = PeerCalls("p0", 1, channel, inbox)
    calls.reserve("d0", CALL, answers.append)
    calls.commit("d0", "t", timeout_s=1.0, then=answers.append)
    calls.abort("d0", "t", "no more")  # what it raises is nobody's business
    channel.future.set_result(ReserveAnswer(accepted=False, receiver_epoch=1))
    assert answers == []
    inbox.drain()
    assert answers == [channel.future] * 2
    assert channel.calls == [
        ("reserve", "d0", 2.0),
        ("commit", "d0", 1.0),
        ("abort", "d0", "no more"),
    ]


def test_without_a_channel_nobody_answers(inbox):
    answers = []
    calls = PeerCalls("p0", 1, None, inbox)
    calls.abort("d0", "t", "no more")
    calls.reserve("d0", CALL, answers.append)
    inbox.drain()
    assert "no control channel" in str(error_of(answers[0]))


def test_ids_tell_lives_and_calls_apart(inbox):
    first, second = PeerCalls("p0", 1, None, inbox), PeerCalls("p0", 2, None, inbox)
    ids = [calls.new_id() for calls in (first, second) for _ in range(2)]
    assert ids == ["p0-1-1", "p0-1-2", "p0-2-1", "p0-2-2"]


def test_a_call_that_raises_is_a_call_that_failed():
    def broken():
        raise TransferFailedError("no")

    assert str(started(broken).exception()) == "no"
    cancelled: Future[None] = Future()
    cancelled.cancel()
    assert isinstance(error_of(cancelled), CancelledError)
