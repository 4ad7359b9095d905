import dataclasses
import itertools
import json
import math

import pytest

from memserve_jax.bench.serve import ServeOptions, build_plan, build_workload, run
from memserve_jax.core.errors import ConfigError
from tests.helpers.fake_generate import FakeGenerate, served

OPTIONS = ServeOptions(target="localhost:50051")


def options(**values):
    return dataclasses.replace(OPTIONS, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 2.0, "concurrency": 4}, r"--rate: got 2 beside --concurrency 4, allowed: one"),
        ({"rate": 0.0}, r"--rate: got 0, allowed: more than 0"),
        ({"rate": math.nan}, r"--rate: got nan, allowed: more than 0"),
        ({"rate": math.inf, "duration_s": 3.0}, r"--rate: got inf, allowed: with --num-requests"),
        ({"timeout_s": math.inf}, r"--timeout-s: got inf, allowed: a finite number"),
        ({"think_time_s": math.nan}, r"--think-time-s: got nan, allowed: a finite number"),
        ({"target": "localhost"}, r"--target: got 'localhost', allowed: HOST:PORT"),
        ({"target": "localhost:99999"}, r"--target: got 'localhost:99999'"),
        ({"target": ":50051"}, r"--target: got ':50051'"),
        ({"prompt_tokens": "many"}, r"--prompt-tokens: got 'many'"),
        ({"output_tokens": "0"}, r"--output-tokens: got '0'"),
        ({"turn_tokens": "x"}, r"--turn-tokens: got 'x'"),
        ({"shared_prefix_tokens": 512}, r"--shared-prefix-tokens: got 512"),
        ({"as_text": True}, r"--as-text: got True, allowed: with --dataset only"),
        ({"tokenizer": "x"}, r"--tokenizer: got 'x', allowed: with --dataset only"),
        ({"dataset": "f", "turns": 3}, r"--turns: got 3, allowed: without --dataset"),
        ({"dataset": "/nowhere"}, r"--dataset /nowhere: cannot read"),
    ],
)
def test_wrong_options_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build_workload(options(**values))


def test_a_run_without_limits_has_64_requests():
    workload = build_workload(options(turns=3))
    assert workload.num_requests == 64
    assert sum(len(session.turns) for session in workload.sessions()) == 64


def test_a_duration_takes_the_limit_away():
    workload = build_workload(options(duration_s=3.0))
    assert workload.num_requests is None
    assert len(list(itertools.islice(workload.sessions(), 100))) == 100


def test_a_dataset_is_played_once_or_as_often_as_asked(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in "abc"))
    assert build_workload(options(dataset=str(path))).num_requests == 3
    longer = build_workload(options(dataset=str(path), num_requests=7, output_tokens="5"))
    prompts = [(turn.text, turn.output_tokens) for s in longer.sessions() for turn in s.turns]
    assert prompts == [(text, 5) for text in "abcabca"]


def test_the_loop_is_closed_unless_a_rate_is_given():
    closed = build_plan(OPTIONS, build_workload(OPTIONS))
    assert closed.concurrency == 8 and closed.arrivals_s is None
    with_rate = options(rate=6.0, turns=3)
    opened = build_plan(with_rate, build_workload(with_rate))
    assert opened.concurrency is None
    arrivals = list(itertools.islice(opened.arrivals_s, 3000))
    assert 3000 / arrivals[-1] == pytest.approx(2.0, rel=0.06)  # sessions of three requests


def test_the_warm_up_is_not_counted_and_shares_no_prefix():
    servicer = FakeGenerate()
    with served(servicer) as target:
        chosen = options(
            target=target,
            num_requests=4,
            prompt_tokens="40",
            output_tokens="3",
            warm_up=2,
            concurrency=1,
        )
        seen = []
        result = run(chosen, build_workload(chosen), on_record=seen.append)
    assert len(result.records) == len(seen) == 4 and len(servicer.requests) == 6
    salts = [request.cache_salt for request in servicer.requests]
    assert salts[2:] == [""] * 4 and all(salts[:2]) and salts[0] == salts[1]
    assert list(servicer.requests[0].token_ids.ids) == list(servicer.requests[2].token_ids.ids)
    assert all(record.cached_tokens == 0 for record in result.records)
