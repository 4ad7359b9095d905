"""Which model it is, weights and all: KV of another one must never be taken for its own."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from memserve_jax.model.bundle import ModelBundle

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by bytes of an element


def fingerprint(bundle: ModelBundle) -> str:
    """Returns a short text that follows from every weight, the config and the number format.

    The weights are read once, where they lie. The same model has another fingerprint where its
    mesh stores KV heads more than once.
    """
    sums = {name: _sums(weight) for name, weight in bundle.params.items()}  # dispatched, all
    text = hashlib.blake2b(digest_size=16)
    text.update(repr((dataclasses.asdict(bundle.config), bundle.dtype)).encode())
    for name, pair in sorted(sums.items()):
        weight = bundle.params[name]
        text.update(repr((name, weight.shape, str(weight.dtype))).encode())
        text.update(np.asarray(pair).tobytes())
    return text.hexdigest()


@jax.jit
def _sums(weight: Shaped[Array, "..."]) -> UInt32[Array, " 2"]:
    """Returns two sums, modulo 2**32, of hashes of each element's bits and place."""
    bits = jax.lax.bitcast_convert_type(weight, _UNSIGNED[weight.dtype.itemsize])
    mixed = bits.astype(jnp.uint32)
    for axis in range(weight.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, weight.shape, axis)
        mixed = _mix(mixed + place * jnp.uint32(0x9E3779B9))
    again = _mix(mixed ^ jnp.uint32(0x5BD1E995))
    return jnp.stack([jnp.sum(each, dtype=jnp.uint32) for each in (mixed, again)])


def _mix(hashes: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finaliser of MurmurHash3: every bit depends on every other."""
    hashes = (hashes ^ (hashes >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> jnp.uint32(16))
