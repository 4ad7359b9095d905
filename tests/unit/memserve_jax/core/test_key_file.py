"""Keys in a file."""

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.key_file import KeyFile
from tests.helpers.certificates import write_keys

ALICE, BOB, CAROL = "alice-" + "a" * 16, "bob-" + "b" * 16, "carol-" + "c" * 16


def test_keys_have_labels(tmp_path):
    path = write_keys(tmp_path / "keys", "# of clients", "", f"{ALICE} alice", BOB)
    keys = KeyFile(path, source="security.api_keys")
    assert keys.first() == ALICE
    assert keys.label_of(ALICE) == "alice"
    assert keys.label_of(BOB) == "line-4"
    for stranger in ("", CAROL, ALICE[:-1], ALICE + "a", ALICE.upper(), "\udcff"):
        assert keys.label_of(stranger) is None


def test_a_changed_file_is_read_again(tmp_path):
    path = write_keys(tmp_path / "keys", ALICE)
    keys = KeyFile(path, source="security.api_keys")
    write_keys(tmp_path / "keys", f"{BOB} bob", f"{ALICE} alice")
    assert (keys.label_of(BOB), keys.label_of(ALICE), keys.first()) == ("bob", "alice", BOB)
    write_keys(tmp_path / "keys", f"{BOB} bob")
    assert keys.label_of(ALICE) is None
    write_keys(tmp_path / "keys")  # empty: a mistake, not a wish
    assert keys.label_of(BOB) == "bob"


def test_every_key_is_compared(tmp_path, monkeypatch):
    path = write_keys(tmp_path / "keys", ALICE, BOB, CAROL)
    keys = KeyFile(path, source="security.api_keys")
    compared = []
    monkeypatch.setattr(
        "memserve_jax.core.key_file.hmac.compare_digest",
        lambda ours, shown: compared.append(ours) or ours == shown,
    )
    assert keys.label_of(ALICE) == "line-1"
    assert compared == [key.digest for key in keys.all()]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tooshort", "line 2: allowed: KEY [LABEL], a key of 16 to 512"),
        (f"{BOB} two words", "line 2"),
        (f"{BOB} l/bel", "line 2"),
        (BOB * 60, "line 2"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path, line, words):
    path = write_keys(tmp_path / "keys", ALICE, line)
    with pytest.raises(ConfigError) as caught:
        KeyFile(path, source="security.api_keys")
    assert str(caught.value).startswith(f"security.api_keys: {path}: {words}")
    assert line.split()[0] not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no key in it"), (b"# none\n", "no key in it"), (b"\xff\xfe" * 20, "not ASCII")],
)
def test_a_file_that_holds_no_keys(tmp_path, content, words):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        KeyFile(str(path), source="security.api_keys")
    with pytest.raises(ConfigError, match=r"security.cluster_key: /no/such: cannot read: No such"):
        KeyFile("/no/such", source="security.cluster_key")


def test_no_key_is_in_a_repr(tmp_path):
    path = write_keys(tmp_path / "keys", ALICE)
    keys = KeyFile(path, source="security.api_keys")
    assert ALICE not in repr(keys.all())
    assert ALICE not in repr(keys)
