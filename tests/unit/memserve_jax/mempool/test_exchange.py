"""Both ends of transfers together: what is announced to peers, and when something is due."""

from memserve_jax.core.clock import ManualClock
from memserve_jax.mempool.transport import Endpoint
from tests.helpers.peers import Network
from tests.helpers.pools import compute, make_pool

TIMEOUT_S = 10.0
PROMPT = list(range(6))


def test_the_next_deadline_is_the_first_of_all():
    network = Network(ManualClock())
    sender, receiver = make_pool("p0", network=network), make_pool("d0", network=network)
    assert sender.next_deadline_s is None
    remote = sender.alloc_mem(1, on="d0", timeout_s=7.0)
    with compute(sender, PROMPT) as lease:
        sender.transfer(lease, "d0", token_ids=PROMPT, timeout_s=5.0)
    assert sender.next_deadline_s == 5.0
    network.run(until="bytes")
    assert (sender.next_deadline_s, receiver.next_deadline_s) == (5.0, 5.0)
    network.run()
    assert (sender.next_deadline_s, receiver.next_deadline_s) == (7.0, 7.0)
    remote.close()
    network.run()
    assert (sender.next_deadline_s, receiver.next_deadline_s) == (None, None)


def test_a_reservation_says_where_bytes_are_taken_and_on_which_ticket():
    network, answers = Network(ManualClock()), []
    sender, receiver = make_pool("p0", network=network), make_pool("d0", network=network)
    reserve = receiver.reserve
    receiver.reserve = lambda call, respond: reserve(
        call, lambda answer: (answers.append(answer), respond(answer))
    )
    with compute(sender, PROMPT) as lease:
        for _ in range(2):
            sender.transfer(lease, "d0", token_ids=PROMPT, timeout_s=TIMEOUT_S)
    network.run()
    assert [answer.endpoints for answer in answers] == [(Endpoint("network", "d0"),)] * 2
    tickets = {answer.ticket for answer in answers}
    assert len(tickets) == 2 and all(len(ticket) == 16 for ticket in tickets)
    for arrival in receiver.poll():
        arrival.lease.close()
