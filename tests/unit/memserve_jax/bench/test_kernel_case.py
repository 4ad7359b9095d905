import pytest

from memserve_jax.bench.kernel_case import HeadShape, KernelCase, KernelGrid

SMALL = HeadShape(name="small", num_heads=4, kv_heads=2, head_dim=16)


def case(op: str, **changed) -> KernelCase:
    sizes = {"batch": 2, "context": 20, "page_size": 8, "dtype": "float32"} | changed
    return KernelCase(op=op, shape=SMALL, **sizes)


@pytest.mark.parametrize(
    ("op", "num_bytes", "num_flops"),
    [
        ("paged_attention", 2 * 20 * 256 + 2 * 2 * 256, 4 * 64 * 2 * 20),
        ("ragged_paged_attention", 2 * 20 * 256 + 2 * 40 * 256, 4 * 64 * 2 * 210),
        ("kv_append", 2 * 2 * 256, 0),
        ("kv_gather", 2 * 2 * 24 * 256 * 4, 0),
        ("kv_scatter", 2 * 2 * 24 * 256 * 4, 0),
    ],
)
def test_what_a_call_moves_and_multiplies(op, num_bytes, num_flops):
    assert case(op).num_bytes == num_bytes
    assert case(op).num_flops == num_flops


def test_a_single_row_appends_its_whole_prompt():
    assert case("kv_append").num_tokens == 2
    assert case("kv_append", batch=1).num_tokens == 20


def test_what_does_not_fit_is_refused_with_the_reason():
    assert case("paged_attention").refusal(1 << 20) is None
    assert case("paged_attention", batch=10**6).refusal(2**30) == (
        "needs 7.7 GiB, the device has 1.0"
    )
    refused = case("ragged_paged_attention", batch=2000).refusal(1 << 40)
    assert refused == "40000 new tokens, more than 32768"


def test_a_grid_is_all_combinations():
    grid = KernelGrid(shapes=(SMALL,), dtype="float32", batches=(1, 2), contexts=(3,), pages=(4,))
    assert len({each.name for each in grid.cases()}) == 5 * 2
    assert grid.cases()[0].name == "paged_attention small, batch 1, context 3, page 4"
