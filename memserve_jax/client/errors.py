"""The one error a client sees. Loads no gRPC, so that commands start at once."""


class ClientError(Exception):
    """A call failed.

    Attributes:
      code: The gRPC status's name.
      message: The server's own line.
      retry_after_s: Where the server is overloaded, after which to ask again; None: it did not say.
    """

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retry_after_s = code, message, retry_after_s
