import pytest

from tests.helpers.transfer_reports import made_up_report

plot = pytest.importorskip("memserve_jax.bench.transfer_plot", exc_type=ImportError)
PNG = b"\x89PNG\r\n\x1a\n"


def test_a_png_is_written(tmp_path):
    path = tmp_path / "transfer.png"
    plot.write_plot(str(path), made_up_report())
    assert path.read_bytes().startswith(PNG)
