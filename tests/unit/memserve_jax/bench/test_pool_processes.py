import pytest

from memserve_jax.bench.pool_processes import pool_workers
from memserve_jax.core.errors import TransferFailedError

PATIENCE_S = 60.0


def test_workers_answer_fail_and_end():
    with pool_workers(["a"], is_quiet=True) as (worker,):
        with pytest.raises(AttributeError, match="no_such_command"):
            worker.ask("no_such_command")
        worker.popen.kill()
        assert worker.wait(PATIENCE_S) == -9
        with pytest.raises(TransferFailedError, match="gone"):
            worker.ask("use_devices", 1, None)
    assert worker.popen.poll() is not None
