"""Grouped-query attention: projections, head norms, rope. Looking at pages is `paged.py`'s."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from memserve_jax.model.config import ModelConfig
from memserve_jax.model.layers import RMSNorm, contract
from memserve_jax.model.paged import Attend
from memserve_jax.model.rope import rotate


class Attention(nnx.Module):
    """Holds weights and nothing else: KV pages come in as an argument and go out as a result."""

    def __init__(
        self, config: ModelConfig, *, stored_kv_heads: int, window: int | None, dtype: jnp.dtype
    ):
        d, n, k, h = config.embed_dim, config.num_heads, stored_kv_heads, config.head_dim
        self.config, self.window = config, window
        self.wq = nnx.Param(jnp.zeros((n, h, d), dtype))
        self.wk = nnx.Param(jnp.zeros((k, h, d), dtype))
        self.wv = nnx.Param(jnp.zeros((k, h, d), dtype))
        self.wo = nnx.Param(jnp.zeros((d, n, h), dtype))
        if config.has_qkv_bias:
            self.bq = nnx.Param(jnp.zeros((n, h), dtype))
            self.bk = nnx.Param(jnp.zeros((k, h), dtype))
            self.bv = nnx.Param(jnp.zeros((k, h), dtype))
        if config.has_output_bias:
            self.bo = nnx.Param(jnp.zeros((d,), dtype))
        if config.has_qk_norm:
            self.q_norm = RMSNorm(h, config.norm_epsilon, dtype)
            self.k_norm = RMSNorm(h, config.norm_epsilon, dtype)

    def __call__(
        self,
        x: Float[Array, "T D"],
        rotations: tuple[Float32[Array, "T H2"], Float32[Array, "T H2"]],
        pages: tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]],
        attend: Attend,
    ) -> tuple[Float[Array, "T D"], tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]]]:
        """Attends each new token to its context, itself included.

        Args:
          x: Normalised hidden states of the new tokens.
          rotations: Cosines and sines of their positions.
          pages: This layer's K and V pages, replicated heads included.
          attend: Appends to and reads the pages.

        Returns:
          The residual update, and the pages with the new tokens' KV written.
        """
        with jax.named_scope("qkv"):
            q, k, v = self._project(x)
        with jax.named_scope("rope"):
            q, k = rotate(q, *rotations), rotate(k, *rotations)
        out, pages = attend(q, (k, v), pages, window=self.window)
        with jax.named_scope("output"):
            update = contract("TNH,DNH->TD", out, self.wo[...])
            if self.config.has_output_bias:
                update = update + self.bo[...][None, :]
        return update, pages

    def _project(
        self, x: Float[Array, "T D"]
    ) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
        q = contract("TD,NHD->TNH", x, self.wq[...])
        k = contract("TD,KHD->TKH", x, self.wk[...])
        v = contract("TD,KHD->TKH", x, self.wv[...])
        if self.config.has_qkv_bias:
            q, k, v = q + self.bq[...][None], k + self.bk[...][None], v + self.bv[...][None]
        if self.config.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v
