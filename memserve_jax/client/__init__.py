"""The Python client: `with Client("127.0.0.1:50051") as client: client.generate("Hello")`."""

from memserve_jax.client.answer import Answer, Chunk
from memserve_jax.client.client import Client
from memserve_jax.client.errors import ClientError
from memserve_jax.core.credentials import Credentials, client_credentials
from memserve_jax.core.tls_files import TlsPaths

__all__ = [
    "Answer",
    "Chunk",
    "Client",
    "ClientError",
    "Credentials",
    "TlsPaths",
    "client_credentials",
]
