import pytest

from memserve_jax.bench.kernel_forms import form_names
from tests.unit.memserve_jax.bench.test_kernel_case import case


@pytest.mark.parametrize(
    ("op", "platform", "first", "others"),
    [
        ("paged_attention", "cpu", "xla", {"reference"}),
        ("paged_attention", "gpu", "triton", {"mosaic_gpu", "xla", "reference", "jax"}),
        ("paged_attention", "tpu", "mosaic_tpu", {"xla", "reference", "jax"}),
        ("ragged_paged_attention", "gpu", "triton", {"mosaic_gpu", "xla", "reference"}),
        ("kv_gather", "gpu", "triton", {"mosaic_gpu", "xla"}),
    ],
)
def test_ours_comes_first(op, platform, first, others):
    found = form_names(case(op), platform, 1 << 30)
    names = [name for name, why in found.items() if why is None]
    assert (names[0], set(names[1:])) == (first, others)


def test_what_is_left_out_says_why():
    assert form_names(case("kv_append"), "cpu", 1 << 30)["reference"] == "is the XLA form"
    big = case("ragged_paged_attention", context=10000)
    assert "MiB besides" in str(form_names(big, "cpu", 1 << 40)["reference"])
