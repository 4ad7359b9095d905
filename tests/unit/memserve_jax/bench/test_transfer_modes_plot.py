import pytest

from tests.unit.memserve_jax.bench.test_transfer_modes import report


def test_a_picture_is_written(tmp_path):
    plot = pytest.importorskip("memserve_jax.bench.transfer_modes_plot", exc_type=ImportError)
    path = tmp_path / "modes.png"
    plot.write_plot(str(path), report())
    assert path.read_bytes().startswith(b"\x89PNG")
