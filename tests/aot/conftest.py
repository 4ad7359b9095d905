"""Ahead-of-time compiles for accelerators that are not here: `make test-aot`.

The environment is its own, `.venv-aot`. Every test of this folder is marked `aot`, which
`make test` leaves out; where no compiler for accelerators is installed (`.venv`), nothing here is
collected at all. What the tests compiled is printed as tables at the end; `--aot-report FILE`
writes them as markdown too.
"""

import datetime
import importlib.metadata
import importlib.util
import os
import pathlib

import jax
import pytest

from tests.helpers.aot import REPORT, Cell

# Read by libtpu when it is loaded, which is when a topology is first asked for.
os.environ |= {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else parallel processes abort on a lock file
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
POSITION = pytest.StashKey[int]()  # of a test among all
COMPILERS = {"test_tpu_": "libtpu", "test_gpu_": "jax_cuda12_plugin"}

collect_ignore_glob = [
    f"{prefix}*.py" for prefix, module in COMPILERS.items() if not importlib.util.find_spec(module)
]


@pytest.fixture(autouse=True, scope="session")
def _as_served():
    """Optimised, as what serves is. Compilers without devices cannot read from the cache."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_addoption(parser):
    parser.addoption("--aot-report", type=pathlib.Path, help="write what was compiled to FILE")


def pytest_collection_modifyitems(items):
    folder = pathlib.Path(__file__).parent
    for position, item in enumerate(items):
        if item.path.is_relative_to(folder):
            item.add_marker(pytest.mark.aot)
            item.stash[POSITION] = position


def pytest_runtest_setup(item):
    REPORT.position = item.stash[POSITION]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes: the first one reports
        session.config.workeroutput["aot"] = [tuple(cell) for cell in REPORT.cells]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    REPORT.cells += [Cell(*cell) for cell in getattr(node, "workeroutput", {}).get("aot", [])]


def pytest_terminal_summary(terminalreporter, config):
    for line in REPORT.lines():
        terminalreporter.write_line(line)
    path = config.getoption("--aot-report", default=None)
    if path is not None:
        heading = [f"# Compiled ahead of time, {datetime.date.today()}", "", _versions()]
        path.write_text("\n".join([*heading, *REPORT.lines(), ""]))


def _versions():
    """Returns the versions of the compilers, in a sentence."""
    names = ["jax", "jaxlib", "libtpu", "jax-cuda12-plugin"]
    found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return f"On CPU, no accelerator at hand: {', '.join(found)}. Written by `make test-aot`."
