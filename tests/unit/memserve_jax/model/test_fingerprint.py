"""Another weight, another place of a weight or another config is another model."""

import dataclasses

import jax.numpy as jnp

from memserve_jax.model.fingerprint import fingerprint
from tests.helpers.engines import bundle_on, checkpoint
from tests.helpers.tiny import tiny_bundle


def with_weight(bundle, change):
    name = next(name for name in sorted(bundle.params) if bundle.params[name].ndim == 2)
    return dataclasses.replace(bundle, params={**bundle.params, name: change(bundle.params[name])})


def test_the_same_model_has_the_same_fingerprint_wherever_it_lies():
    again = tiny_bundle(checkpoint(), first_device=1, tp=1)
    assert fingerprint(again) == fingerprint(bundle_on())
    assert len(fingerprint(again)) == 32


def test_one_bit_or_two_rows_exchanged_are_another_model():
    bundle = bundle_on()
    seen = {fingerprint(bundle)}
    for change in (
        lambda weight: weight.at[1, 2].add(1e-6),
        lambda weight: weight.at[jnp.array([0, 1])].set(weight[jnp.array([1, 0])]),
        lambda weight: -weight,
    ):
        seen.add(fingerprint(with_weight(bundle, change)))
    assert len(seen) == 4


def test_the_config_is_part_of_it():
    bundle = bundle_on()
    config = dataclasses.replace(bundle.config, num_layers=bundle.config.num_layers + 1)
    assert fingerprint(dataclasses.replace(bundle, config=config)) != fingerprint(bundle)
