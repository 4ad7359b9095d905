"""An instance's state as told to schedulers and to `Status` callers."""

import dataclasses

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.serving.engine_parts import EngineParts, State
from pallas_kernels.dispatch import fallbacks


def status_message(
    parts: EngineParts, *, state: State, target: str, metrics_target: str = ""
) -> pb.InstanceStatus:
    """Returns the state of an instance. Called on the engine thread.

    Args:
      parts: The engine and its pool.
      state: Whether it takes requests.
      target: HOST:PORT of its server.
      metrics_target: HOST:PORT of its metrics; empty: there are none.
    """
    identity, load = parts.identity, parts.engine.load
    return pb.InstanceStatus(
        instance=identity.instance,
        epoch=identity.epoch,
        role=identity.role,
        state=state,
        target=target,
        model=parts.card.name,
        tensor_parallelism=identity.tp,
        block_size_tokens=identity.block_size_tokens,
        caching=identity.caching,
        tiers=[
            pb.TierStatus(
                tier=tier.tier,
                num_blocks=tier.num_blocks,
                free_blocks=tier.free_blocks,
                leased_blocks=tier.leased_blocks,
                indexed_blocks=tier.indexed_blocks,
                pinned_blocks=tier.pinned_blocks,
            )
            for tier in parts.pool.status.tiers
        ],
        running=load.running,
        waiting=load.waiting,
        queued_prefill_tokens=load.queued_prefill_tokens,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        max_context_tokens=parts.engine.max_context_tokens,
        max_running=parts.engine.max_running,
        transfer_mode=parts.engine.transfer_mode,
        transports=[
            pb.TransportStatus(
                transport=transport.name,
                calls=transport.counters.num_calls,
                bytes=transport.counters.num_bytes,
                seconds=transport.counters.seconds,
            )
            for transport in parts.transports
        ],
        kernel_fallbacks=[
            pb.KernelFallback(op=op, reason=reason, traces=count)
            for op, reasons in fallbacks().items()
            for reason, count in reasons.items()
        ],
        counters=pb.Counters(**dataclasses.asdict(parts.engine.counters)),
        metrics_target=metrics_target,
    )
