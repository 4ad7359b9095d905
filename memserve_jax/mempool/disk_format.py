"""What a file of the DISK tier holds, and what it is called: one block, under a chained hash.

A file is a safetensors file of two tensors: `kv`, the bytes of one packed block, and `seal`, a
hash over them, over the file's name and over what they are the KV of. No token, no salt and no
name of a model stands in it. The name of a block follows from the cache salt and all tokens up
to its end (`core/block_names.py`), so another tenant's KV cannot be found under it; the folder
and the seal follow from the model and the KV layout.
"""

import hashlib
import hmac

import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Shaped
from safetensors.numpy import load, save

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.kv_layout import KVLayout

_SEAL_BYTES = 32
_VERSION = "memserve-kv-2"


class BadFileError(ValueError):
    """A file's content is not the block that its name promises."""


def origin_of(model: str, layout: KVLayout) -> bytes:
    """Returns the name of the KV that one model has in one layout; `model` is its fingerprint."""
    text = repr((_VERSION, model, layout)).encode()
    return hashlib.blake2b(text, digest_size=NAME_BYTES, person=b"origin").digest()


class BlockFormat:
    """Turns blocks of one origin into file contents and back. Any thread."""

    def __init__(self, origin: bytes, layout: KVLayout):
        self._origin = origin
        self._shape = layout.packed_shape(1)[1:]
        self._dtype = jnp.dtype(layout.dtype)
        self.file_bytes = len(self.encode(bytes(NAME_BYTES), np.zeros(self._shape, self._dtype)))

    def encode(self, name: bytes, block: Shaped[np.ndarray, "L 2 K S H"]) -> bytes:
        """Returns the content of the file of a block; all are equally long."""
        # As plain bytes: the library's numpy side does not know bfloat16.
        content = np.ascontiguousarray(block, self._dtype).reshape(-1).view(np.uint8)
        return save({"kv": content, "seal": self._seal(name, content)})

    def decode(self, name: bytes, content: bytes) -> Shaped[np.ndarray, "L 2 K S H"]:
        """Returns the block in the content of the file called `name`.

        Raises:
          BadFileError: it is corrupt, cut off, or that of another block, model or layout.
        """
        try:
            tensors = load(content)
            block, seal = tensors["kv"], tensors["seal"]
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BadFileError(f"not a block: {error}") from None
        if block.dtype != np.uint8 or not hmac.compare_digest(
            seal.tobytes(), self._seal(name, block).tobytes()
        ):
            raise BadFileError("the seal does not fit the content")
        try:
            return block.reshape(-1).view(self._dtype).reshape(self._shape)
        except ValueError as error:
            raise BadFileError(f"not a block: {error}") from None

    def _seal(self, name: bytes, content: np.ndarray) -> np.ndarray:
        seal = hashlib.blake2b(digest_size=_SEAL_BYTES, person=b"seal", key=self._origin)
        seal.update(name)
        seal.update(memoryview(content.reshape(-1)))
        return np.frombuffer(seal.digest(), np.uint8)
