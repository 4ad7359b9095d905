import io

import rich.console

from memserve_jax.bench.fit import Errors, PrefillFit
from memserve_jax.bench.fit_fetch import FetchFit
from memserve_jax.bench.fit_table import errors_table, operators_table
from tests.unit.memserve_jax.bench.test_fit import TRUTH

FIT = PrefillFit(
    cost=TRUTH,
    errors=(Errors(cached_percent=25, operators=0.05, architecture=0.2, linear=0.4, noise=0.03),),
    fitted=(),
    held_out=(),
)
FETCH = FetchFit(transport="tcp", fixed_s=2e-3, bytes_per_s=5e8, error=0.04)


def shown(table):
    console = rich.console.Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_errors_stand_beside_the_papers():
    text = shown(errors_table(FIT, title="errors"))
    line = next(line for line in text.splitlines() if "25 %" in line)
    found = [part.strip() for part in line.split("│") if part.strip()]
    assert found == ["25 %", "5.0%", "4.7 %", "20.0%", "20.1 %", "40.0%", "3.0%"]


def test_each_coefficient_has_its_line():
    text = shown(operators_table(FIT, FETCH))
    assert "a step of 64" in text and "8.000" in text
    assert "1 queries, 1024 keys in tiles of 1" in text and "1.024" in text
    assert "a call by tcp" in text and "2.000" in text
    assert "4.0% off the times it is fitted to" in text
