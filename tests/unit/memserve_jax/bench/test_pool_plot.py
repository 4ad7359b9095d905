import dataclasses

import pytest

from tests.unit.memserve_jax.bench.test_pool_table import REPORT

plot = pytest.importorskip("memserve_jax.bench.pool_plot", exc_type=ImportError)


@pytest.mark.parametrize("part", ["calls", "index", "scale", "ttft", "all"])
def test_a_png_is_written_of_the_parts_there_are(tmp_path, part):
    others = (
        {} if part == "all" else dict.fromkeys({"calls", "index", "scale", "ttft"} - {part}, ())
    )
    path = tmp_path / "pool.png"
    plot.write_plot(str(path), dataclasses.replace(REPORT, **others))
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
