"""The decoder: one class for every family, and for prefill and decode alike."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from memserve_jax.model.attention import Attention
from memserve_jax.model.config import ModelConfig
from memserve_jax.model.layers import Mlp, RMSNorm, contract
from memserve_jax.model.paged import Attend
from memserve_jax.model.rope import rotations
from pallas_kernels.pages import KVPages


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP around one residual stream."""

    def __init__(self, config: ModelConfig, layer: int, *, stored_kv_heads: int, dtype: jnp.dtype):
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_epsilon, dtype)
        self.attention = Attention(
            config, stored_kv_heads=stored_kv_heads, window=config.windows[layer], dtype=dtype
        )
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_epsilon, dtype)
        self.mlp = Mlp(config, dtype)

    def __call__(
        self,
        x: Float[Array, "T D"],
        cos_sin: tuple[Float32[Array, "T H2"], Float32[Array, "T H2"]],
        pages: tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]],
        attend: Attend,
    ) -> tuple[Float[Array, "T D"], tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]]]:
        """Returns the residual stream after this layer, and its pages."""
        update, pages = self.attention(self.attention_norm(x), cos_sin, pages, attend)
        x = x + update
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x)), pages


class Decoder(nnx.Module):
    """Embedding, layers, final norm and head. Holds weights only."""

    def __init__(self, config: ModelConfig, *, stored_kv_heads: int, dtype: jnp.dtype):
        """Makes a decoder of zero weights; use under `nnx.eval_shape`.

        Args:
          config: Sizes and quirks.
          stored_kv_heads: KV heads counting replicas, a multiple of the config's.
          dtype: Of weights and activations.
        """
        self.config, self.dtype = config, dtype
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.embed_dim), dtype))
        self.layers = nnx.List(
            DecoderLayer(config, layer, stored_kv_heads=stored_kv_heads, dtype=dtype)
            for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.embed_dim, config.norm_epsilon, dtype)
        if not config.ties_embeddings:
            self.head = nnx.Param(jnp.zeros((config.vocab_size, config.embed_dim), dtype))

    def __call__(
        self,
        token_ids: Int32[Array, " T"],
        positions: Int32[Array, " T"],
        pages: KVPages,
        attend: Attend,
    ) -> tuple[Float[Array, "T D"], KVPages]:
        """Returns the residual stream of the new tokens after the last layer, and the pages."""
        return self.run(self.embed(token_ids), positions, pages, attend)

    def embed(self, token_ids: Int32[Array, " T"]) -> Float[Array, "T D"]:
        """Returns the residual stream before the first layer."""
        with jax.named_scope("embedding"):
            return self.embedding[...].at[token_ids].get(mode="clip").astype(self.dtype)

    def run(
        self,
        x: Float[Array, "T D"],
        positions: Int32[Array, " T"],
        pages: KVPages,
        attend: Attend,
        *,
        first_layer: int = 0,
    ) -> tuple[Float[Array, "T D"], KVPages]:
        """Returns the residual stream after the layers that `pages` are of, and those pages."""
        cos_sin = rotations(positions, self.config.rope, self.config.head_dim)
        layers = self.layers[first_layer : first_layer + len(pages.k)]
        k_pages, v_pages = [], []
        for layer, k, v in zip(layers, pages.k, pages.v, strict=True):
            x, (k, v) = layer(x, cos_sin, (k, v), attend)
            k_pages.append(k)
            v_pages.append(v)
        return x, KVPages(tuple(k_pages), tuple(v_pages))

    def logits(self, x: Float[Array, "B D"]) -> Float32[Array, "B V"]:
        """Returns the logits after residual streams `x`, in float32."""
        with jax.named_scope("head"):
            x = self.norm(x)
            head = self.embedding if self.config.ties_embeddings else self.head
            return contract("BD,VD->BV", x, head[...], out=jnp.float32)
