"""An engine whose prefills are timed one at a time, as they are served: chunks, padding, pages."""

from collections.abc import Sequence

import jax
import numpy as np

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.config import Config
from memserve_jax.core.model_card import load_card
from memserve_jax.core.tokenizer import load_tokenizer
from memserve_jax.core.types import (
    CachingMode,
    InstanceId,
    Request,
    RequestId,
    Role,
    SamplingParams,
)
from memserve_jax.engine.buckets import ladder_of
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.events import Tokens
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh

_SAMPLING = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1)
_ROOM = 4  # prompts of the greatest length that the pool holds: the base prompt stays


class FitEngine:
    """A colocated engine with one request at a time."""

    def __init__(self, path: str, config: Config, *, most_tokens: int):
        """Loads the checkpoint `path` and compiles the engine's ladder.

        Args:
          path: Its directory.
          config: `engine`, `mempool.block_size_tokens`, `model.dtype` and `tp` are used.
          most_tokens: Of the longest prompt.
        """
        self._size = size = config.mempool.block_size_tokens
        clock = SystemClock()
        self._clock = clock
        mesh = make_mesh(jax.devices()[: config.tp], config.tp)
        bundle = load_model(path, mesh=mesh, dtype=config.model.dtype)
        num_blocks = -(-most_tokens // size) + 1
        self._pool = MemPool(
            instance=InstanceId("bench"),
            epoch=1,
            layout=bundle.config.layout(size, bundle.dtype),
            mesh=mesh,
            hbm_blocks=_ROOM * num_blocks,
            host_blocks=0,
            clock=clock,
        )
        card = load_card(path)
        self._engine = Engine(
            instance=InstanceId("bench"),
            role=Role.COLOCATED,
            caching=CachingMode.ON,
            config=config.engine,
            bundle=bundle,
            pool=self._pool,
            card=card,
            tokenizer=load_tokenizer(path),
            clock=clock,
        )
        self._engine.warm_up()
        self.dtype = bundle.dtype
        self.num_parameters = sum(weight.size for weight in bundle.params.values())
        self.rungs = ladder_of(config.engine, decodes=True).mixed_tokens
        self.max_context_tokens = self._engine.max_context_tokens
        self._vocab_size = card.vocab_size
        self._random = np.random.default_rng(0)
        self._num_requests = 0
        self._base = self._tokens(most_tokens)

    def held_tokens(self, num_tokens: int, percent: int) -> int:
        """Returns how much of a prompt is cached, where so much is asked for: whole blocks."""
        return num_tokens * percent // 100 // self._size * self._size

    def prefill_s(self, num_tokens: int, num_held: int) -> float:
        """Returns the seconds from a prompt to its first token, `num_held` of it cached.

        `num_held` are whole blocks, fewer than the prompt has.
        """
        prefix = self._base[:num_held]
        if num_held and self._cached_tokens(prefix) < num_held:
            self._serve(prefix)
        seconds, num_cached = self._serve((*prefix, *self._tokens(num_tokens - num_held)))
        assert num_cached == num_held, f"{num_cached} tokens cached, not {num_held}"
        return seconds

    def _cached_tokens(self, prefix: Sequence[int]) -> int:
        with self._pool.match_whole(prefix) as lease:
            return len(lease) * self._size

    def _serve(self, prompt: tuple[int, ...]) -> tuple[float, int]:
        """Serves one prompt to its first token; returns the seconds and the tokens cached."""
        self._num_requests += 1
        request = Request(
            request_id=RequestId(f"r{self._num_requests}"),
            session_id="",
            prompt_token_ids=prompt,
            sampling=_SAMPLING,
        )
        start_s = self._clock.now_s()
        self._engine.submit(request)
        while True:
            for event in self._engine.step():
                assert isinstance(event, Tokens), f"the engine said {event}"
                if event.usage is not None:
                    seconds = self._clock.now_s() - start_s
                    while self._engine.has_work:
                        self._engine.step()
                    return seconds, event.usage.cached_tokens

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.integers(3, self._vocab_size, count).tolist())
