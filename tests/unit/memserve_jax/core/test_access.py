"""Who a caller is."""

import pytest

from memserve_jax.core.access import Access, Caller, Standing, is_sealed, seal
from memserve_jax.core.key_file import KeyFile
from tests.helpers.certificates import write_keys

API, CLUSTER, OTHER = "api-" + "a" * 16, "cluster-" + "c" * 16, "other-" + "o" * 16
STRANGER, CLIENT, MEMBER = Standing.STRANGER, Standing.CLIENT, Standing.MEMBER


@pytest.fixture
def api_keys(tmp_path):
    return KeyFile(write_keys(tmp_path / "api", f"{API} alice"), source="security.api_keys")


@pytest.fixture
def cluster_key(tmp_path):
    lines = (f"{CLUSTER} new", f"{OTHER} old")
    return KeyFile(write_keys(tmp_path / "cluster", *lines), source="security.cluster_key")


def test_keys_decide(api_keys, cluster_key):
    access = Access(api_keys=api_keys, cluster_key=cluster_key)
    assert access.caller(API, ()) == Caller(CLIENT, "alice")
    assert access.caller(CLUSTER, ()) == Caller(MEMBER, "new")
    assert access.caller(OTHER, ()) == Caller(MEMBER, "old")
    for stranger in (None, "", "x" * 20):
        assert access.caller(stranger, ()).standing is STRANGER
    assert access.caller(None, ["c.test"]).standing is STRANGER, "no name was asked for"


def test_names_in_certificates_decide(api_keys):
    access = Access(api_keys=api_keys, cluster_name="c.test")
    assert access.caller(None, ["x", "c.test"]) == Caller(MEMBER, "c.test")
    assert access.caller(API, ["c.test"]).standing is MEMBER
    assert access.caller(API, ["x", "*.test"]).standing is CLIENT
    assert access.caller(None, ["x"]).standing is STRANGER


def test_without_api_keys_everybody_is_a_client(cluster_key):
    access = Access(cluster_key=cluster_key)
    assert access.caller(None, ()).standing is CLIENT
    assert access.caller(CLUSTER, ()).standing is MEMBER


def test_a_seal_holds_for_its_words_and_its_keys(cluster_key, api_keys):
    words = ("p0", "127.0.0.1:1", "", "é\udcff")
    shown = seal(cluster_key, words)
    assert is_sealed(cluster_key, words, shown)
    assert not is_sealed(api_keys, words, shown)
    for other in (
        ("p0", "127.0.0.1:2", "", "é\udcff"),
        ("p01", "27.0.0.1:1", "", "é\udcff"),
        words[:3],
        (),
    ):
        assert not is_sealed(cluster_key, other, shown)
    assert not is_sealed(cluster_key, words, b"")


def test_an_old_key_seals_until_it_is_taken_out(tmp_path):
    path = tmp_path / "rotated"
    keys = KeyFile(write_keys(path, OTHER), source="security.cluster_key")
    shown = seal(keys, ["w"])
    write_keys(path, CLUSTER, OTHER)
    assert is_sealed(keys, ["w"], shown)
    write_keys(path, CLUSTER)
    assert not is_sealed(keys, ["w"], shown)
