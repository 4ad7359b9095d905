"""Our credentials as gRPC takes them."""

from collections.abc import Sequence

import grpc

from memserve_jax.core.credentials import Credentials
from memserve_jax.core.tls_files import TlsFiles, TlsMaterial

Metadata = Sequence[tuple[str, str | bytes]]


def server_tls(credentials: Credentials) -> grpc.ServerCredentials | None:
    """Returns what a server shows and wants, in every connection as the files are then.

    None: plain text. gRPC can want a certificate of everybody or of nobody, not of some.
    """
    tls = credentials.tls
    if tls is None:
        return None
    # Before the first look: what changes between the two readings is read again.
    newer = _Newer(tls, wants_client_certificates=credentials.wants_client_certificates)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(tls.material(), credentials.wants_client_certificates),
        newer.configuration,  # pyright: ignore[reportArgumentType]
        require_client_authentication=credentials.wants_client_certificates,
    )


def channel_tls(credentials: Credentials) -> grpc.ChannelCredentials | None:
    """Returns what a channel opened now shows and wants; None: plain text."""
    if credentials.tls is None:
        return None
    material = credentials.tls.material()
    return grpc.ssl_channel_credentials(
        root_certificates=material.ca,
        private_key=material.key,
        certificate_chain=material.certificate,
    )


def channel_options(credentials: Credentials) -> tuple[tuple[str, str | int], ...]:
    """Returns the options of a channel that follow from `credentials`."""
    limits = credentials.limits
    options: tuple[tuple[str, str | int], ...] = (
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
    )
    if credentials.tls is not None and credentials.server_name is not None:
        options += (("grpc.ssl_target_name_override", credentials.server_name),)
    return options


def open_blocking_channel(target: str, credentials: Credentials) -> grpc.Channel:
    """Returns a channel for synchronous calls, with the certificates as they are now.

    It shows no key: that goes with each call.

    Raises:
      ConfigError: it would leave the machine in plain text, which is not allowed.
    """
    credentials.check_target(target)
    options = (
        *channel_options(credentials),
        ("grpc.use_local_subchannel_pool", 1),  # a restarted server is dialled afresh
    )
    tls = channel_tls(credentials)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, tls, options=options)


def with_bearer(credentials: Credentials, metadata: Metadata | None = None) -> Metadata | None:
    """Returns `metadata` and the key to show, if there is one."""
    if credentials.bearer is None:
        return metadata
    return (*(metadata or ()), ("authorization", f"Bearer {credentials.bearer()}"))


class _Newer:
    """Tells gRPC, which asks at every connection, of files that have changed. Any thread."""

    def __init__(self, tls: TlsFiles, *, wants_client_certificates: bool):
        self._tls = tls
        self._wants_client_certificates = wants_client_certificates
        self._told = tls.version()

    def configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the new certificates; None where they are the old ones."""
        version = self._tls.version()
        if version == self._told:
            return None
        self._told = version
        return _configuration(self._tls.material(), self._wants_client_certificates)


def _configuration(
    material: TlsMaterial, wants_client_certificates: bool
) -> grpc.ServerCertificateConfiguration:
    assert material.key is not None, "a server without a private key"
    assert material.certificate is not None, "a server without a certificate"
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)],
        root_certificates=material.ca if wants_client_certificates else None,
    )
