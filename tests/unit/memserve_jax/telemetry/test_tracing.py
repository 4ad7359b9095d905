"""Who records spans, and what it costs where nobody does."""

import builtins
import subprocess
import sys

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.telemetry_sections import TracingSection
from memserve_jax.telemetry import tracing
from memserve_jax.telemetry.request_context import outgoing_metadata
from memserve_jax.telemetry.tracing import NO_TRACER, Span, Tracer, open_tracer


def test_without_an_exporter_nothing_is_recorded():
    tracer = open_tracer(TracingSection(), "p0")
    assert tracer is NO_TRACER and isinstance(tracer, Tracer)
    with tracer.serve("request", None) as outer, tracer.span("attempt", calls=True) as inner:
        assert isinstance(outer, Span)
        inner.set({"a": 1})
        assert outgoing_metadata() is None
        tracer.past("queue", {}, began_s=1.0)
    tracer.close()


def test_without_an_exporter_the_extra_is_not_even_imported():
    program = (
        "import sys, scheduler.process\n"
        "from memserve_jax.core.telemetry_sections import TracingSection\n"
        "from memserve_jax.telemetry.tracing import open_tracer\n"
        "open_tracer(TracingSection(), 'p0')\n"
        "sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.endswith("telemetry.otel_tracer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"file needs opentelemetry.*memserve-jax\[trace\]"):
        tracing.open_tracer(TracingSection(exporter="file"), "p0")
