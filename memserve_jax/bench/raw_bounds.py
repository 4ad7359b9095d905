"""What copies could cost at best: memory to memory, and through one socket between processes."""

import socket
import threading
import time

import numpy as np

CHUNK_BYTES = 4 << 20  # of a read from the socket
_SIZE_BYTES = 8


class CopyBound:
    """`numpy.copyto` between two buffers that have been touched."""

    def __init__(self) -> None:
        self._source = np.ones(0, np.uint8)
        self._target = np.ones(0, np.uint8)

    def seconds(self, num_bytes: int, repeats: int) -> float:
        """Returns the mean time of a copy."""
        if num_bytes > len(self._source):
            self._source, self._target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
        source, target = self._source[:num_bytes], self._target[:num_bytes]
        began_s = time.perf_counter()
        for _ in range(repeats):
            np.copyto(target, source)
        return (time.perf_counter() - began_s) / repeats


class SocketSink:
    """The receiving end: a thread that reads what comes into a buffer, and says when it is all."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, name="socket-sink", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.getsockname()[1]

    def close(self) -> None:
        """Listens no more; the thread ends with its connection."""
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            self._read(connection)

    def _read(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = memoryview(bytearray())
        while header := connection.recv(_SIZE_BYTES, socket.MSG_WAITALL):
            num_bytes = int.from_bytes(header, "little")
            if num_bytes > len(buffer):
                buffer = memoryview(np.ones(num_bytes, np.uint8))
            received = 0
            while received < num_bytes:
                most = min(num_bytes - received, CHUNK_BYTES)
                received += connection.recv_into(buffer[received : received + most])
            connection.sendall(b"\0")


class SocketBound:
    """The sending end: one stream, one call for all the bytes."""

    def __init__(self, port: int):
        """Connects to a `SocketSink`."""
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._source = np.ones(0, np.uint8)

    def seconds(self, num_bytes: int, repeats: int) -> float:
        """Returns the mean time until the other end has read all of it."""
        if num_bytes > len(self._source):
            self._source = np.ones(num_bytes, np.uint8)
        source = memoryview(self._source)[:num_bytes]
        began_s = time.perf_counter()
        for _ in range(repeats):
            self._socket.sendall(num_bytes.to_bytes(_SIZE_BYTES, "little"))
            self._socket.sendall(source)
            self._socket.recv(1)
        return (time.perf_counter() - began_s) / repeats

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()
