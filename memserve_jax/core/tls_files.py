"""Certificates and private key of a process, from PEM files, whole and fitting each other."""

import pathlib
import ssl
from dataclasses import dataclass, field

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.watched_files import WatchedFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPaths:
    """Where they lie. A client that shows no certificate has `ca` alone."""

    ca: str
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """What the files say, in the forms that gRPC and `ssl` want it."""

    ca: bytes
    certificate: bytes | None
    key: bytes | None = field(repr=False)
    as_server: ssl.SSLContext
    as_client: ssl.SSLContext  # checks the server's certificate and name


class TlsFiles:
    """The files as they are now. Any thread may ask."""

    def __init__(self, paths: TlsPaths, *, source: str = "security.", is_mutual: bool = False):
        """Reads them.

        Args:
          paths: Of the files.
          source: What stands before `ca`, `certificate` and `key` in errors.
          is_mutual: Whether clients of a server with these must show a certificate too.

        Raises:
          ConfigError: a file that cannot be read, that is no PEM, or a key of another certificate.
        """
        given = [path for path in (paths.ca, paths.certificate, paths.key) if path is not None]
        self._files = WatchedFiles(given, lambda: _read(paths, source, is_mutual))

    def material(self) -> TlsMaterial:
        """Returns what they say."""
        return self._files.value()

    def version(self) -> int:
        """Returns how often they have changed: what was made of an older version is out of date."""
        return self._files.version()


def _read(paths: TlsPaths, source: str, is_mutual: bool) -> TlsMaterial:
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    as_server.verify_mode = ssl.CERT_REQUIRED if is_mutual else ssl.CERT_NONE
    as_client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca = _bytes(paths.ca, f"{source}ca")
    certificate = key = None
    if paths.certificate is not None and paths.key is not None:
        certificate = _bytes(paths.certificate, f"{source}certificate")
        key = _bytes(paths.key, f"{source}key")
    for context in (as_server, as_client):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise ConfigError(
                f"{source}ca: {paths.ca}: allowed: certificates in PEM form"
            ) from None
        if paths.certificate is not None and paths.key is not None:
            try:
                # A password that is given is not asked for: nobody is there to answer.
                context.load_cert_chain(paths.certificate, paths.key, password="")
            except (ssl.SSLError, OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or type(error).__name__
                raise ConfigError(
                    f"{source}certificate: {paths.certificate} and {source}key: {paths.key}: "
                    f"{reason}, allowed: a certificate and its private key, not encrypted, in "
                    "PEM form"
                ) from None
    return TlsMaterial(
        ca=ca, certificate=certificate, key=key, as_server=as_server, as_client=as_client
    )


def _bytes(path: str, source: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: {path}: cannot read: {error.strerror}") from None
