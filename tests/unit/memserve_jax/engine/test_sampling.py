import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.types import SamplingParams
from memserve_jax.engine.inputs import RowTable, unpack_lines
from memserve_jax.engine.sampling import MAX_ALTERNATIVES, empty_state, sample, set_history

V = 48
sample_jit = jax.jit(sample)


def rows_of(params, *, positions=None, seeds=None, num_rows=None):
    """SamplingRows as a step of single-token rows has them."""
    count = len(params)
    table = RowTable(num_rows=num_rows or count, table_width=1)
    for row, sampling in enumerate(params):
        seed = sampling.seed or 0 if seeds is None else seeds[row]
        table.open(row, sampling, seed)
        position = 7 if positions is None else positions[row]
        table.schedule(row, position=position - 1, num_new=1, samples=True)
    return unpack_lines(jnp.asarray(table.pack_decode(range(count), count))).sampling


def draws(logits, sampling, *, count=4000):
    """`count` draws from one row of logits, by different seeds."""
    rows = rows_of([sampling] * count, seeds=range(count))
    many = jnp.asarray(np.tile(logits, (count, 1)))
    sampled, _ = sample_jit(many, empty_state(count, len(logits)), rows)
    return np.bincount(np.asarray(sampled.token_ids), minlength=len(logits))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def assert_distributed(counts, probabilities):
    """Pearson's chi-square, 5 sigma wide; nothing outside the support."""
    expected = probabilities * counts.sum()
    support = expected > 0
    assert not counts[~support].any()
    chi2 = ((counts - expected)[support] ** 2 / expected[support]).sum()
    freedom = max(1, support.sum() - 1)
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


LOGITS = np.random.default_rng(0).normal(size=V).astype(np.float32) * 2


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=10, top_p=0.8, temperature=1.7),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "top_k_and_p"],
)
def test_draws_follow_the_restricted_distribution(sampling):
    scaled = LOGITS / sampling.temperature
    probabilities = softmax(scaled)
    if sampling.min_p:
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
    if sampling.top_k:
        probabilities[np.argsort(-scaled)[sampling.top_k :]] = 0
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= sampling.top_p]] = 0
    assert_distributed(draws(LOGITS, sampling), probabilities / probabilities.sum())


def test_top_k_of_one_and_a_tiny_top_p_are_greedy():
    best = LOGITS.argmax()
    for sampling in (SamplingParams(top_k=1), SamplingParams(top_p=1e-6)):
        assert draws(LOGITS, sampling, count=64)[best] == 64


def test_greedy_rows_are_the_exact_argmax_in_any_company():
    logits = np.random.default_rng(1).normal(size=(6, V)).astype(np.float32)
    company = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.5, top_p=0.5),
        SamplingParams(temperature=0.0),
        SamplingParams(repetition_penalty=2.0, top_k=3),
        SamplingParams(temperature=0.0, logprobs=3),
        SamplingParams(temperature=0.0),
    ]
    sampled, _ = sample_jit(jnp.asarray(logits), empty_state(6, V), rows_of(company))
    for row in (0, 2, 4, 5):
        assert sampled.token_ids[row] == logits[row].argmax()


def test_a_draw_depends_on_seed_and_position_alone():
    logits = np.tile(LOGITS, (5, 1))
    one = SamplingParams(seed=2**63 + 5, top_p=0.9)
    alone, _ = sample_jit(jnp.asarray(logits[:1]), empty_state(1, V), rows_of([one], positions=[9]))
    others = [SamplingParams(seed=i, temperature=0.1 * i, top_k=i) for i in range(4)]
    state = empty_state(5, V)
    rows = rows_of([*others, one], positions=[3, 4, 5, 6, 9])
    among, _ = sample_jit(jnp.asarray(logits), state, rows)
    assert among.token_ids[4] == alone.token_ids[0]
    positions = range(40)
    rows = rows_of([one] * 40, positions=positions)
    spread, _ = sample_jit(jnp.asarray(np.tile(LOGITS, (40, 1))), empty_state(40, V), rows)
    assert len(set(np.asarray(spread.token_ids).tolist())) > 3


def test_seeds_differ_in_their_high_words():
    logits = np.zeros((2, V), np.float32)
    rows = rows_of([SamplingParams()] * 2, seeds=[1, 1 + (1 << 40)])
    sampled, _ = sample_jit(jnp.asarray(logits), empty_state(2, V), rows)
    assert sampled.token_ids[0] != sampled.token_ids[1]


def test_penalties_follow_their_formulas():
    sampling = SamplingParams(
        temperature=0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2
    )
    logits = np.random.default_rng(2).normal(size=V).astype(np.float32)
    prompt, answer = [1, 2, 2, int(logits.argmax())], [5, 5, 6, 2]
    counts = np.bincount(answer, minlength=V)
    seen = np.isin(np.arange(V), prompt + answer)
    expected = np.where(seen, np.where(logits > 0, logits / 1.3, logits * 1.3), logits)
    expected = expected - 0.2 * counts - 0.4 * (counts > 0)
    state = set_history(
        empty_state(3, V),
        jnp.int32(1),
        jnp.asarray(counts, jnp.int32),
        jnp.asarray(np.isin(np.arange(V), prompt)),
    )
    rows = rows_of([SamplingParams(temperature=0.0), sampling, SamplingParams(temperature=0.0)])
    sampled, state = sample_jit(jnp.asarray(np.tile(logits, (3, 1))), state, rows)
    assert sampled.token_ids.tolist() == [logits.argmax(), expected.argmax(), logits.argmax()]
    assert state.output_counts[1].sum() == len(answer) + 1
    assert state.last_tokens.tolist() == sampled.token_ids.tolist()


def test_a_frequency_penalty_counts_what_it_sampled():
    logits = jnp.zeros((1, 4), jnp.float32).at[0, 2].set(1.0).at[0, 1].set(0.5)
    rows = rows_of([SamplingParams(temperature=0.0, frequency_penalty=0.3)])
    state, tokens = empty_state(1, 4), []
    for _ in range(4):
        sampled, state = sample_jit(logits, state, rows)
        tokens.append(int(sampled.token_ids[0]))
    assert tokens == [2, 2, 1, 2]  # 1.0, 0.7, then 0.4 < 0.5, then 0.4 > 0.2


def test_logprobs_are_of_the_raw_logits():
    logits = np.random.default_rng(3).normal(size=(2, V)).astype(np.float32)
    params = [SamplingParams(temperature=2.0, top_k=2, logprobs=4), SamplingParams(temperature=0.0)]
    sampled, _ = sample_jit(jnp.asarray(logits), empty_state(2, V), rows_of(params))
    expected = np.log(softmax(logits[0]))
    assert sampled.logprobs[0] == pytest.approx(expected[sampled.token_ids[0]], abs=1e-5)
    order = np.argsort(-expected)[:MAX_ALTERNATIVES]
    assert sampled.top_token_ids[0].tolist() == order.tolist()
    np.testing.assert_allclose(sampled.top_logprobs[0], expected[order], atol=1e-5)


def test_padding_rows_leave_the_state_alone():
    table = RowTable(num_rows=2, table_width=1)
    rows = unpack_lines(jnp.asarray(table.pack_decode([], 2))).sampling
    state = empty_state(2, V)._replace(last_tokens=jnp.array([11, 12], jnp.int32))
    _, after = sample_jit(jnp.ones((2, V), jnp.float32), state, rows)
    assert after.last_tokens.tolist() == [11, 12]
    assert not after.output_counts.any()
