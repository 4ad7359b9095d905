"""What client commands show: from files, never from the command line."""

from memserve_jax.cli import main
from tests.helpers.certificates import make_authority, write_keys

KEY = "k" * 20


def test_the_first_key_goes_along(memserve, server, tmp_path):
    path = write_keys(tmp_path / "key", f"{KEY} me")
    ended = memserve("status", "--target", server.target, "--api-key-file", path, "--json")
    assert ended.status == 0
    assert server.metadata[-1]["authorization"] == f"Bearer {KEY}"
    ended = memserve("generate", "--target", server.target, "--api-key-file", path, "hello")
    assert ended.status == 0
    assert server.metadata[-1]["authorization"] == f"Bearer {KEY}"
    memserve("status", "--target", server.target)
    assert "authorization" not in server.metadata[-1]


def test_what_does_not_fit_is_said_in_one_line(memserve, tmp_path):
    paths = make_authority(tmp_path).issue("a", "a.test")
    for arguments, words in (
        (["--target", "192.0.2.1:9"], "192.0.2.1:9: not a loopback address, allowed without TLS"),
        (["--tls-cert", "c.pem"], "--tls-cert, --tls-key: allowed: both or neither"),
        (["--tls-cert", "c.pem", "--tls-key", "k.pem"], "--tls-cert: allowed with --tls-ca"),
        (["--tls-server-name", "n"], "--tls-server-name: allowed with --tls-ca"),
        (["--tls-ca", "/no"], "--tls-ca: /no: cannot read"),
        (["--tls-ca", paths.ca, "--tls-cert", paths.ca, "--tls-key", "/no"], "--tls-key: /no: ca"),
        (["--api-key-file", "/no"], "--api-key-file: /no: cannot read: No such file"),
    ):
        ended = memserve("status", *arguments)
        assert ended.status == 2, arguments
        assert words in ended.err
        assert ended.err.count("\n") == 1


def test_insecure_lets_plain_text_leave(memserve, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "memserve_jax.client.client.open_blocking_channel",
        lambda target, credentials: asked.append((target, credentials.is_insecure)) or 1 / 0,
    )
    try:
        main(["status", "--target", "192.0.2.1:9", "--insecure"])
    except ZeroDivisionError:
        assert asked == [("192.0.2.1:9", True)]
