import pytest

from memserve_jax.bench.metrics import RequestRecord, summarize

plot = pytest.importorskip("memserve_jax.bench.plot", exc_type=ImportError)
PNG = b"\x89PNG\r\n\x1a\n"


def record(index, status="OK"):
    return RequestRecord(
        request_id=f"r{index}", session_id="s", turn=0, status=status, sent_s=0.1 * index,
        token_times_s=(0.1 * index + 0.05, 0.1 * index + 0.07), ended_s=0.1 * index + 0.08,
        token_ids=(1, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    "records", [[], [record(0)], [record(0), record(1, "UNAVAILABLE"), record(2)]]
)
def test_a_png_is_written_whatever_came_of_the_run(tmp_path, records):
    path = tmp_path / "run.png"
    plot.write_plot(str(path), records, summarize(records), "a run")
    assert path.read_bytes().startswith(PNG)
