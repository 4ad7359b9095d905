"""What there is to know of an engine, without changing anything."""

import dataclasses

from memserve_jax.core.config import EngineSection
from memserve_jax.core.types import RequestId, TransferMode
from memserve_jax.engine.batcher import Batcher
from memserve_jax.engine.counters import Counters, Load
from memserve_jax.engine.forecast import Forecast
from memserve_jax.engine.handoff import HandOffs
from memserve_jax.engine.intake import Limits
from memserve_jax.engine.memory import SequenceMemory
from memserve_jax.engine.pipeline import Pipeline
from memserve_jax.engine.runner import Runner
from memserve_jax.engine.send_back import SendBacks
from memserve_jax.engine.sequence import Sequence
from memserve_jax.engine.steps import Steps
from memserve_jax.engine.transfer_mode import ModeSwitch
from memserve_jax.mempool.pool import MemPool


class EngineFacts:
    """The part of `Engine` that only looks. Its owner makes every call."""

    _batcher: Batcher
    _config: EngineSection
    _counters: Counters
    _forecast: Forecast
    _hand_offs: HandOffs
    _limits: Limits
    _memory: SequenceMemory
    _pipeline: Pipeline
    _pool: MemPool
    _runner: Runner
    _send_backs: SendBacks
    _sequences: dict[RequestId, Sequence]
    _switch: ModeSwitch

    @property
    def num_in_flight(self) -> int:
        """Requests not ended yet, in any phase, and send-backs: 0 when quiescent."""
        return len(self._sequences) + self._send_backs.num_in_flight

    @property
    def max_context_tokens(self) -> int:
        """Tokens a prompt and its answer may have together on this instance."""
        return self._limits.context_tokens

    @property
    def max_running(self) -> int:
        """Sequences that run at once."""
        return self._config.max_running

    @property
    def counters(self) -> Counters:
        """Running totals since the start, fields as proto `Counters`; a snapshot."""
        own = dataclasses.replace(
            self._counters,
            prefill_tokens_computed=self._pipeline.num_prompt_tokens,
            cached_tokens=self._memory.num_cached_tokens,
            kv_send_backs=self._send_backs.num_done,
            kv_send_backs_dropped=self._send_backs.num_dropped,
            kv_streams_aborted=self._hand_offs.num_aborted,
            transfer_mode_switches=self._switch.num_switches,
            compiled_shapes=self._runner.num_compiled,
            **dataclasses.asdict(self._forecast.totals),
        )
        return own.with_pool(self._pool.counters)

    @property
    def steps(self) -> Steps:
        """Its compiled steps: an engine of the same size on the same bundle may share them."""
        return self._runner.steps

    @property
    def transfer_mode(self) -> TransferMode:
        """How the KV of the next prompt will leave."""
        return self._switch.mode

    @property
    def load(self) -> Load:
        """What a scheduler wants to know."""
        num_running = len(self._batcher.running)
        return Load(
            running=num_running,
            waiting=len(self._sequences) - num_running,
            queued_prefill_tokens=sum(
                max(0, sequence.num_given - sequence.num_computed)
                for sequence in self._batcher.waiting + self._batcher.running
            ),
            prefill_tokens_per_s=self._pipeline.prefill_rate.tokens_per_s,
        )
