import contextlib

from memserve_jax.bench.raw_bounds import CopyBound, SocketBound, SocketSink


def test_copies_of_growing_sizes():
    bound = CopyBound()
    for num_bytes in (1, 4096, 16):
        assert bound.seconds(num_bytes, 2) > 0


def test_bytes_through_a_socket():
    sink = SocketSink()
    bound = SocketBound(sink.port)
    with contextlib.closing(bound):
        for num_bytes in (1, 5 << 20, 16):
            assert bound.seconds(num_bytes, 2) > 0
    sink.close()
