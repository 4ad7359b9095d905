"""What a forward pass is told about its tokens."""

from typing import NamedTuple

from jaxtyping import Array, Int32


class DecodeBatch(NamedTuple):
    """One new token per row. Padding rows: slot M * S (dropped), context_len 0."""

    token_ids: Int32[Array, " B"]
    positions: Int32[Array, " B"]  # of the new token in its sequence, from 0
    slots: Int32[Array, " B"]  # where its KV goes: page * S + offset
    block_tables: Int32[Array, "B P"]  # entries past the context: any value
    context_lens: Int32[Array, " B"]  # tokens to attend to, the new one included


class PrefillBatch(NamedTuple):
    """Consecutive new tokens of several rows, flattened: chunks of prompts, or single tokens.

    Row r's tokens are `query_starts[r]:query_starts[r + 1]`; they are the last ones of its
    `context_lens[r]` tokens. Rows without tokens have equal starts. Tokens past
    `query_starts[R]` are padding: slot M * S.
    """

    token_ids: Int32[Array, " T"]
    positions: Int32[Array, " T"]
    slots: Int32[Array, " T"]
    block_tables: Int32[Array, "R P"]
    query_starts: Int32[Array, " R1"]  # R + 1
    context_lens: Int32[Array, " R"]  # tokens to attend to, the new ones included
