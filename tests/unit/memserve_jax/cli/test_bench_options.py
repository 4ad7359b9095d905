import pytest

from memserve_jax.cli.bench_options import progress_bar, whole_numbers, write_json
from memserve_jax.core.errors import ConfigError, MemServeError


def test_numbers_are_read():
    assert whole_numbers("--x", "1, 8,32") == (1, 8, 32)


@pytest.mark.parametrize("text", ["", "1,x", "0", "8,,32", "-1"])
def test_other_lists_are_refused_by_name(text):
    with pytest.raises(ConfigError, match="--x: got"):
        whole_numbers("--x", text)


def test_a_report_is_written(tmp_path, capsys):
    write_json(str(tmp_path / "a.json"), "{}")
    assert (tmp_path / "a.json").read_text() == "{}\n"
    write_json("-", "[]")
    assert capsys.readouterr().out == "[]\n"
    with pytest.raises(MemServeError, match="cannot write: Is a directory"):
        write_json(str(tmp_path), "{}")


def test_a_bar_can_be_moved():
    with progress_bar("work") as progress:
        progress(1, 2, "half")
        progress(2, None, "all")
