"""The one error a client sees. Loads no gRPC, so that commands start at once."""


class ClientError(Exception):
    """A call failed. `code` is the gRPC status's name, `message` the server's own line."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message
