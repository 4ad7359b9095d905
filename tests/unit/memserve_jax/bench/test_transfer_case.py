from memserve_jax.bench.transfer_case import NUM_SCATTERED, SHAPES, Shape, cases_of
from memserve_jax.core.types import Tier


def test_a_block_is_64_kib_where_heads_are_four():
    assert Shape(1, 1).layout.block_bytes == 64 << 10
    assert Shape(2, 2, 3).name == "2->2 (3 heads)"


def test_only_the_first_shape_has_whole_transfers():
    cases = cases_of(("tcp", "collective"), SHAPES[:2], (1, 16))
    wholes = [case for case in cases if case.is_whole]
    assert {case.shape for case in wholes} == {SHAPES[0]}
    assert len(cases) == len(set(cases))
    assert sum(case.is_scattered for case in cases) == 2
    assert all(case.num_blocks == NUM_SCATTERED for case in cases if case.is_scattered)


def test_host_ends_are_measured_where_they_can_be():
    cases = cases_of(("tcp", "jax_transfer"), SHAPES[:1], (1,))
    pairs = {(case.transport, case.source, case.target) for case in cases}
    assert len({pair for pair in pairs if pair[0] == "tcp"}) == 4
    assert {pair for pair in pairs if pair[0] != "tcp"} == {("jax_transfer", Tier.HBM, Tier.HBM)}
