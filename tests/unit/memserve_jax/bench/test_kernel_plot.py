import pytest

from tests.helpers.kernel_reports import made_up_report

plot = pytest.importorskip("memserve_jax.bench.kernel_plot", exc_type=ImportError)


def test_a_png_is_written(tmp_path):
    path = tmp_path / "kernels.png"
    plot.write_plot(str(path), made_up_report())
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
