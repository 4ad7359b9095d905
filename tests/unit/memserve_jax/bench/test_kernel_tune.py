import json

import pytest

from memserve_jax.bench.kernel_arrays import make_arrays
from memserve_jax.bench.kernel_case import OPS
from memserve_jax.bench.kernel_tune import check_platform, shape_of, tune
from memserve_jax.core.errors import ConfigError, MemServeError
from pallas_kernels.tiles import tile_candidates
from tests.unit.memserve_jax.bench.test_kernel_case import case


@pytest.mark.parametrize("op", OPS)
def test_the_fastest_tile_is_written_once_for_a_shape(tmp_path, op):
    wanted = tile_candidates(op, shape_of(case(op), make_arrays(case(op))))[1]
    timed = []

    def time_of(case, arrays, tile):
        timed.append(tile)
        if len(timed) == 1:
            raise NotImplementedError("not this one")
        return 1.0 if tile == wanted else 2.0

    (found,) = tune([case(op), case(op)], tmp_path, time_of=time_of)
    assert (found.num_refused, found.num_timed) == (1, len(timed) - 1)
    (file,) = tmp_path.iterdir()
    (entry,) = json.loads(file.read_text())["entries"]
    assert (entry["op"], entry["us"]) == (op, 1.0)
    assert entry["tile"] == {name: getattr(wanted, name) for name in wanted.__slots__}


def test_nothing_is_written_where_no_tile_runs(tmp_path):
    def time_of(*_):
        raise RuntimeError("no GPU here")

    with pytest.raises(MemServeError, match="no tile runs: RuntimeError: no GPU here"):
        tune([case("kv_append")], tmp_path, time_of=time_of)
    assert not list(tmp_path.iterdir())


def test_a_platform_without_tiles_is_refused():
    with pytest.raises(ConfigError, match="no kernel has tiles on cpu, allowed: a GPU"):
        check_platform()
