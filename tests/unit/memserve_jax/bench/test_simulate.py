"""The parts of the simulation, run in the order asked for."""

from memserve_jax.bench import simulate
from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_report import PartReport


def test_parts_run_in_order_and_say_how_far_they_are(monkeypatch):
    def part(name):
        def run(options, told):
            told(f"{options.seed}")
            return PartReport(part=name, title="", headings=(), rows=(), values=())

        return run

    monkeypatch.setattr(simulate, "PARTS", {name: part(name) for name in ("a", "b", "c")})
    moves = []
    options = SimulateOptions(parts=("c", "a"), seed=7)
    reports = simulate.run(options, lambda *move: moves.append(move))
    assert [report.part for report in reports] == ["c", "a"]
    assert moves == [(0, 2, "c: 7"), (1, 2, "a: 7")]
    assert len(simulate.run(options)) == 2
