"""Meshes take exactly the devices they are told of."""

import jax
import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.parallel.mesh import MODEL_AXIS, make_mesh, tensor_parallelism


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_mesh_has_tp_devices_in_order(tp):
    devices = jax.devices()[1 : 1 + tp]
    mesh = make_mesh(devices, tp)
    assert list(mesh.devices.flat) == devices
    assert mesh.axis_names == (MODEL_AXIS,)
    assert tensor_parallelism(mesh) == tp


@pytest.mark.parametrize(("num_devices", "tp"), [(1, 2), (2, 1), (0, 0), (1, -1)])
def test_a_wrong_number_of_devices_is_refused(num_devices, tp):
    with pytest.raises(ConfigError, match=f"tp: got {tp}"):
        make_mesh(jax.devices()[:num_devices], tp)
