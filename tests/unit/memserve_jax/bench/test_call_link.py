import socket
import threading
from multiprocessing.connection import Connection

import pytest

from memserve_jax.bench.call_link import CallLink
from memserve_jax.core.errors import TransferFailedError

PATIENCE_S = 30.0


def echo(kind, arguments, respond):
    if kind == "fail":
        respond(ValueError(*arguments))
    elif kind == "raise":
        raise KeyError(*arguments)
    elif kind != "silence":
        respond((kind, arguments))


@pytest.fixture
def links():
    made = [CallLink(Connection(end.detach()), echo) for end in socket.socketpair()]
    yield made
    for link in made:
        link.close()


def test_calls_go_both_ways(links):
    for link in links:
        assert link.call("say", 1, "a", timeout_s=PATIENCE_S).result() == ("say", (1, "a"))


@pytest.mark.parametrize(("kind", "error"), [("fail", ValueError), ("raise", KeyError)])
def test_errors_come_back_as_they_are(links, kind, error):
    with pytest.raises(error, match="why"):
        links[0].call(kind, "why", timeout_s=PATIENCE_S).result()
    assert links[0].call("say", timeout_s=PATIENCE_S).result() == ("say", ())


def test_no_answer_in_time_fails(links):
    with pytest.raises(TransferFailedError, match="no answer in"):
        links[0].call("silence", timeout_s=0.01).result(PATIENCE_S)


def test_a_peer_that_goes_fails_what_waits_and_what_comes(links):
    waiting = links[0].call("silence", timeout_s=PATIENCE_S)
    links[1].close()
    assert links[0].is_over.wait(PATIENCE_S)
    for future in (waiting, links[0].call("say", timeout_s=PATIENCE_S)):
        with pytest.raises(TransferFailedError, match="gone"):
            future.result(PATIENCE_S)


def test_calls_from_many_threads_do_not_mix(links):
    answers = {}

    def ask(number):
        answers[number] = links[0].call("say", number, timeout_s=PATIENCE_S).result()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: ("say", (number,)) for number in range(16)}
