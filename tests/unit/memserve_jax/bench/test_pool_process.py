"""The commands, without a process around them."""

import pytest

from memserve_jax.bench.pool_process import PoolProcess
from memserve_jax.core.types import InstanceId
from tests.helpers.transport_pairs import layout

P0, D0 = InstanceId("p0"), InstanceId("d0")


@pytest.mark.parametrize("transport", ["device_put", "tcp", "jax_transfer"])
def test_kv_goes_from_pool_to_pool(transport):
    process, prompt = PoolProcess(), tuple(range(20))
    for name, devices in ((P0, (0, 1)), (D0, (2,))):
        process.make_pool(name, layout(), devices, (transport,), {"hbm_blocks": 16})
    process.cache(P0, prompt)
    assert process.digest(D0, prompt) == (0, "")
    outcome = process.transfer(P0, D0, prompt, 60.0)
    assert outcome == {"phase": "done", "error": "", "num_blocks": 5, "num_calls": 1}
    assert process.digest(D0, prompt) == process.digest(P0, prompt)
    assert process.check(P0) == process.check(D0) == 0
    assert process.counters(P0) == {transport: (1, 5 * layout().block_bytes)}
    for name in (P0, D0):
        process.drop_pool(name)
    process.host.close()
