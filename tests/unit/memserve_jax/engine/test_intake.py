import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import EngineSection
from memserve_jax.core.errors import ConfigError, InvalidRequestError
from memserve_jax.core.types import InstanceId, SamplingParams
from memserve_jax.engine.intake import Intake, Limits, context_limit
from memserve_jax.engine.sequence import Duty, Phase
from tests.helpers.engines import card, make_request, tokenizer


def intake(context=100, pool_blocks=6):
    return Intake(
        limits=Limits(model_context_tokens=context, pool_blocks=pool_blocks, block_size_tokens=8),
        card=card(),
        tokenizer=tokenizer(),
        clock=ManualClock(3.0),
    )


def test_the_context_is_the_models_unless_the_config_says_less():
    assert context_limit(EngineSection(), card()) == 1024
    assert context_limit(EngineSection(max_context_tokens=64), card()) == 64
    with pytest.raises(ConfigError, match="at most the model's 1024"):
        context_limit(EngineSection(max_context_tokens=1025), card())


def test_an_answer_is_cut_to_what_model_and_pool_can_hold():
    request = make_request("a", [97] * 40, SamplingParams(max_tokens=90))
    assert intake().sequence(request, Duty.ANSWER, None).answer.max_tokens == 9  # 48 + 1 - 40
    assert intake(context=45).sequence(request, Duty.ANSWER, None).answer.max_tokens == 5
    prefill = intake().sequence(request, Duty.PREFILL, InstanceId("d0"))
    assert prefill.answer.max_tokens == 60  # how much the other side's pool holds is its affair


def test_a_decode_side_begins_by_waiting_for_kv():
    request = make_request("a", [97] * 4)
    sequence = intake().sequence(request, Duty.DECODE, InstanceId("p0"))
    assert sequence.phase is Phase.AWAITING_KV
    assert sequence.arrival_s == 3.0
    assert intake().sequence(request, Duty.ANSWER, None).phase is Phase.WAITING


def test_a_given_seed_is_kept_and_others_are_drawn():
    door = intake()
    seeds = {door.sequence(make_request("a", [97]), Duty.ANSWER, None).seed for _ in range(3)}
    assert len(seeds) == 3
    seeded = make_request("a", [97], SamplingParams(seed=9))
    assert door.sequence(seeded, Duty.ANSWER, None).seed == 9


def test_sequences_are_numbered_as_they_come():
    door = intake()
    first, second = (door.sequence(make_request("a", [97]), Duty.ANSWER, None) for _ in range(2))
    assert first.rank < second.rank


def test_a_prompt_larger_than_the_pool_is_refused():
    with pytest.raises(InvalidRequestError, match="7 blocks', allowed: at most the pool's 6"):
        intake().sequence(make_request("a", [97] * 49), Duty.ANSWER, None)
