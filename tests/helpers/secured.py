"""A cluster's certificates and keys, and what its processes and clients are told of them."""

import pathlib
from dataclasses import dataclass

from memserve_jax.client import Client
from memserve_jax.core.credentials import Credentials, client_credentials
from memserve_jax.core.tls_files import TlsPaths
from tests.helpers.certificates import CLUSTER_NAME, Authority, make_authority, write_keys

ALICE, BOB = "sk-alice-" + "a" * 24, "sk-bob-" + "b" * 24


@dataclass(frozen=True)
class Secured:
    """Mutual TLS by one authority, names for members, keys for clients."""

    authority: Authority
    member: TlsPaths
    guest: TlsPaths  # signed by the same authority, and no member
    api_keys: pathlib.Path

    @property
    def overrides(self) -> dict[str, object]:
        """Config keys of every process."""
        return {
            "security.ca": self.member.ca,
            "security.certificate": self.member.certificate,
            "security.key": self.member.key,
            "security.cluster_name": CLUSTER_NAME,
            "security.api_keys": self.api_keys,
        }

    @property
    def options(self) -> list[str]:
        """Of `memserve` client commands that show what members show."""
        assert self.member.certificate is not None
        assert self.member.key is not None
        return [
            *("--tls-ca", self.member.ca, "--tls-cert", self.member.certificate),
            *("--tls-key", self.member.key, "--tls-server-name", CLUSTER_NAME),
        ]

    def credentials(self, paths: TlsPaths, api_key: str | None = None) -> Credentials:
        """Returns those of a client that shows `paths`, and perhaps a key."""
        return client_credentials(paths, server_name=CLUSTER_NAME, api_key=api_key)

    def client(self, target: str, paths: TlsPaths, api_key: str | None = None) -> Client:
        """Returns a client; see `credentials`."""
        return Client(target, credentials=self.credentials(paths, api_key))


def secure(folder: pathlib.Path) -> Secured:
    """Returns new certificates and keys, as files below `folder`."""
    authority = make_authority(folder / "pki")
    api_keys = folder / "api-keys"
    write_keys(api_keys, "# of clients", f"{ALICE} alice")
    return Secured(
        authority=authority,
        member=authority.issue("member", CLUSTER_NAME),
        guest=authority.issue("guest", "guest.test"),
        api_keys=api_keys,
    )
