"""The inbox keeps the order, loses nothing, and wakes the owner."""

import threading

from memserve_jax.mempool.inbox import Inbox


def test_work_is_done_in_order_with_what_it_leaves():
    done, woken = [], []
    inbox = Inbox(lambda: woken.append(True))
    inbox.post(lambda: (done.append(1), inbox.post(lambda: done.append(3))))
    inbox.post(lambda: done.append(2))
    assert done == []
    inbox.drain()
    assert done == [1, 2, 3]
    assert len(woken) == 3
    inbox.drain()


def test_many_threads_lose_nothing():
    done = []
    inbox = Inbox(lambda: None)
    threads = [
        threading.Thread(target=lambda: [inbox.post(lambda: done.append(1)) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        inbox.drain()
    inbox.drain()
    assert len(done) == 800


def test_waiting_ends_with_what_comes():
    done = []
    inbox = Inbox(lambda: None)
    inbox.wait(0.0)
    thread = threading.Thread(target=lambda: inbox.post(lambda: done.append(1)))
    thread.start()
    inbox.wait(60.0)
    thread.join()
    assert done == [1]
    inbox.post(lambda: done.append(2))
    inbox.wait(60.0)
    assert done == [1, 2]
