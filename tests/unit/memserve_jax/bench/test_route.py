"""`bench route` measures the parts it is asked for."""

from memserve_jax.bench import route
from memserve_jax.bench.route import RouteOptions, quick_options, run
from memserve_jax.bench.route_proxy import DirectPath, ProxyReport


def test_decisions_of_every_size():
    options = RouteOptions(
        parts=("decide",), instances=(1, 2), blocks=(600, 100), prompt_tokens=(32, 64), rounds=3
    )
    moves = []
    report = run(options, lambda *move: moves.append(move))
    sizes = [(each.num_instances, each.prompt_tokens) for each in report.decisions]
    assert sizes == [(count, length) for count in (1, 2) for _ in (0, 1) for length in (32, 64)]
    assert [each.prompt_blocks for each in report.trees] == [512, 512]
    assert report.hashing is not None and report.hashing.num_tokens == 8192
    assert report.proxy is None
    assert [what for _, _, what in moves] == ["1 instances", "2 instances"]


PROXY = ProxyReport(
    ways=(),
    direct_path=DirectPath(
        requests=1,
        tokens=1,
        route_cpu_ms_per_request=0.0,
        streaming_cpu_us_per_token=0.0,
        idle_cpu_us_per_token=0.0,
    ),
)


def test_the_proxy_is_measured_by_itself(monkeypatch):
    class Ways:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

        def measure(self, told):
            told("round")
            return PROXY

    monkeypatch.setattr(route, "proxy_bench", lambda options, folder: Ways())
    report = run(quick_options(("proxy",), "session"))
    assert report.proxy is PROXY and report.decisions == ()
