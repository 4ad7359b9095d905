"""Certificates and private keys from files."""

import pathlib
import shutil
import ssl

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.tls_files import TlsFiles, TlsPaths
from tests.helpers.certificates import make_authority


def test_what_fits_is_read(tmp_path):
    paths = make_authority(tmp_path).issue("a", "a.test")
    material = TlsFiles(paths, is_mutual=True).material()
    assert material.ca == pathlib.Path(paths.ca).read_bytes()
    assert material.key == pathlib.Path(paths.key).read_bytes()
    assert material.as_server.verify_mode is ssl.CERT_REQUIRED
    assert material.as_client.verify_mode is ssl.CERT_REQUIRED
    assert material.as_client.check_hostname
    assert "PRIVATE" not in repr(material)
    assert TlsFiles(paths).material().as_server.verify_mode is ssl.CERT_NONE
    assert TlsFiles(TlsPaths(ca=paths.ca)).material().certificate is None


def test_a_pair_is_taken_once_both_have_been_replaced(tmp_path):
    authority = make_authority(tmp_path)
    paths, new = authority.issue("a", "a.test"), authority.issue("b", "b.test")
    files = TlsFiles(paths)
    old = files.material()
    shutil.copy(new.certificate, paths.certificate)
    assert files.material() is old
    assert files.version() == 0
    shutil.copy(new.key, paths.key)
    assert files.version() == 1
    assert files.material().certificate == pathlib.Path(new.certificate).read_bytes()


def test_what_is_wrong_is_named(tmp_path):
    authority = make_authority(tmp_path)
    paths, other = authority.issue("a", "a.test"), authority.issue("b", "b.test")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff\x00 not PEM")
    for ca, certificate, key, words in (
        ("/no/such", paths.certificate, paths.key, "security.ca: /no/such: cannot read: No such"),
        (str(garbage), paths.certificate, paths.key, f"security.ca: {garbage}: allowed: cert"),
        (paths.ca, "/no/such", paths.key, "security.certificate: /no/such: cannot read"),
        (paths.ca, paths.certificate, other.key, f"security.key: {other.key}: KEY_VALUES_MISMATCH"),
        (paths.ca, str(garbage), paths.key, f"security.certificate: {garbage}"),
        (paths.ca, paths.certificate, str(garbage), f"security.key: {garbage}"),
    ):
        with pytest.raises(ConfigError, match=words):
            TlsFiles(TlsPaths(ca=ca, certificate=certificate, key=key))
