"""The vocabulary of a model directory without a tokenizer: token ids in, token ids out."""

from memserve_jax.core.errors import InvalidRequestError


class NoCodec:
    """Has no text: refuses to encode, decodes everything to nothing."""

    @property
    def byte_values(self) -> list[bytes] | None:
        """No id has bytes."""
        return []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Refuses.

        Raises:
          InvalidRequestError: always.
        """
        raise InvalidRequestError(
            "prompt", text[:40], "token_ids: this model directory has no tokenizer"
        )

    def decode(self, token_ids: list[int]) -> str:
        """Returns no text."""
        return ""

    def visible(self, token_id: int) -> bool:
        """No id has text."""
        return False

    def is_byte(self, token_id: int) -> bool:
        """No id is a byte."""
        return False

    def context_after(self, context: list[int], token_ids: list[int], text: str) -> list[int]:
        """Nothing stands for anything."""
        return []

    def token_id(self, token: str) -> int | None:
        """No token has a spelling."""
        return None
