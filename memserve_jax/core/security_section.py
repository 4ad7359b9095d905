"""The `security` section of a config: who may talk with whom, and what nobody may send."""

import typing

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from memserve_jax.core.errors import ConfigError

ClientCertificates = typing.Literal["required", "none"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SecuritySection:
    """Files of certificates and keys, read again when they change, and limits. No secrets.

    With `certificate` everything between processes is TLS. Whoever shows a key of `cluster_key`,
    or a certificate for `cluster_name`, belongs to the cluster; where neither is set, whoever
    shows a certificate of `ca`. Others may call GenerateService alone, with a key of `api_keys`
    where that is set.
    """

    ca: str | None = None  # PEM: whose certificates count, of servers and of clients
    certificate: str | None = None  # PEM: this process's own, with what lies between it and `ca`
    key: str | None = None  # PEM: its private key, not encrypted
    client_certificates: ClientCertificates = "required"  # where there is TLS: mutual, or not
    cluster_name: str | None = Field(default=None, min_length=1)  # a DNS name in certificates
    cluster_key: str | None = None  # text: KEY [LABEL] a line; the first one is shown to others
    api_keys: str | None = None  # text: KEY [LABEL] a line; of clients
    insecure: bool = False  # plain text beyond loopback
    max_message_bytes: int = Field(default=16 << 20, ge=1 << 16)  # either way; KV is no message
    max_metadata_bytes: int = Field(default=16 << 10, ge=1 << 10)  # of one call
    max_prompt_bytes: int = Field(default=4 << 20, ge=1)  # of a text, or of all of a chat
    max_streams: int = Field(default=4096, ge=1)  # calls at a time of one connection

    @pydantic.model_validator(mode="after")
    def _is_whole(self) -> "SecuritySection":
        for name in ("ca", "key"):
            if (getattr(self, name) is None) != (self.certificate is None):
                raise ConfigError(
                    f"security.{name}: allowed: all of ca, certificate and key, or none of them"
                )
        if self.cluster_name is not None and not self.has_mutual_tls:
            raise ConfigError(
                f"security.cluster_name: got {self.cluster_name!r}, allowed with "
                "security.certificate and client_certificates: required"
            )
        if self.cluster_key is None and self.cluster_name is None:
            if self.api_keys is not None:
                raise ConfigError(
                    "security.api_keys: allowed with security.cluster_key or cluster_name, so "
                    "that who may ask for answers may not change the cluster"
                )
            if self.certificate is not None and not self.has_mutual_tls:
                raise ConfigError(
                    "security.client_certificates: got none, allowed with security.cluster_key: "
                    "else anybody could change the cluster"
                )
        return self

    @property
    def has_mutual_tls(self) -> bool:
        """Whether nobody can connect without a certificate of `ca`."""
        return self.certificate is not None and self.client_certificates == "required"
