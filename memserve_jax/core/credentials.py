"""What a process shows to others and wants to be shown, in one object that is handed around."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

from memserve_jax.core.access import Access
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.key_file import KeyFile
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.core.tls_files import TlsFiles, TlsPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Of a server process, or of a client. By default: plain text, on loopback only.

    Attributes:
      tls: Certificates; None: plain text.
      server_name: What certificates of servers must be for; None: the address that is dialled.
      wants_client_certificates: Of a server with TLS: whether clients must show one.
      bearer: Gives the key that goes with every call; None: none does.
      access: What callers must show beside what TLS wants; None: nothing.
      is_insecure: Whether plain text may leave the machine.
      limits: Of messages, and so on.
    """

    tls: TlsFiles | None = None
    server_name: str | None = None
    wants_client_certificates: bool = False
    bearer: Callable[[], str] | None = None
    access: Access | None = None
    is_insecure: bool = False
    limits: SecuritySection = field(default_factory=SecuritySection)

    def check_host(self, host: str) -> None:
        """Does nothing where a server of ours may listen on `host`.

        Raises:
          ConfigError: others could reach it, in plain text.
        """
        if self.tls is None and not self.is_insecure and not is_loopback(host):
            raise ConfigError(
                f"host: got {host!r} without TLS, allowed: a loopback address such as 127.0.0.1, "
                "security.certificate (and ca, key), or --insecure"
            )

    def check_target(self, target: str) -> None:
        """Does nothing where `target` (HOST:PORT) may be called.

        Raises:
          ConfigError: the call would leave the machine in plain text.
        """
        host = target.rpartition(":")[0].removeprefix("[").removesuffix("]")
        if self.tls is None and not self.is_insecure and not is_loopback(host):
            raise ConfigError(
                f"{target}: not a loopback address, allowed without TLS: --insecure "
                "(or security.insecure)"
            )


PLAIN = Credentials()  # plain text on loopback, open to whoever is there


def credentials_of(section: SecuritySection) -> Credentials:
    """Returns the credentials of a server process.

    Raises:
      ConfigError: a file that cannot be read, or does not hold what it should.
    """
    tls = cluster_key = api_keys = None
    if section.ca is not None:
        paths = TlsPaths(ca=section.ca, certificate=section.certificate, key=section.key)
        tls = TlsFiles(paths, is_mutual=section.has_mutual_tls)
    if section.cluster_key is not None:
        cluster_key = KeyFile(section.cluster_key, source="security.cluster_key")
    if section.api_keys is not None:
        api_keys = KeyFile(section.api_keys, source="security.api_keys")
    access = None
    if cluster_key or api_keys or section.cluster_name:
        access = Access(
            api_keys=api_keys, cluster_key=cluster_key, cluster_name=section.cluster_name
        )
    return Credentials(
        tls=tls,
        server_name=section.cluster_name,
        wants_client_certificates=section.has_mutual_tls,
        bearer=None if cluster_key is None else cluster_key.first,
        access=access,
        is_insecure=section.insecure,
        limits=section,
    )


def client_credentials(
    tls: TlsPaths | None = None,
    *,
    server_name: str | None = None,
    api_key: str | None = None,
    is_insecure: bool = False,
) -> Credentials:
    """Returns the credentials of a client.

    Args:
      tls: Files: `ca` of the server's certificate; `certificate` and `key` where it wants one.
      server_name: What the server's certificate is for, where that is not its address.
      api_key: Goes with every call.
      is_insecure: Whether plain text may leave the machine.

    Raises:
      ConfigError: a file that cannot be read, or does not hold what it should.
    """
    return Credentials(
        tls=None if tls is None else TlsFiles(tls, source="tls "),
        server_name=server_name,
        bearer=None if api_key is None else lambda: api_key,
        is_insecure=is_insecure,
    )


def is_loopback(host: str) -> bool:
    """Whether what goes to `host` stays on this machine. Names other than localhost may not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
