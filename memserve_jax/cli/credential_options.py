"""Options of client commands that say what to show to the server, and what it must show.

Keys come from files: a command line can be read by everybody on the machine.
"""

from typing import Any

import click

from memserve_jax.client import Client
from memserve_jax.core.credentials import Credentials
from memserve_jax.core.key_file import KeyFile
from memserve_jax.core.tls_files import TlsFiles, TlsPaths

_META = f"{__name__}.given"


def credential_options(function: Any) -> Any:
    """Adds them; the command asks `given_credentials` or `connect`."""
    for name, kind, text in reversed(
        [
            ("--tls-ca", "FILE", "PEM of who signed the server's certificate: TLS."),
            ("--tls-cert", "FILE", "PEM of a certificate to show, where the server wants one."),
            ("--tls-key", "FILE", "PEM of its private key."),
            ("--tls-server-name", "NAME", "What the server's certificate is for, if not HOST."),
            ("--api-key-file", "FILE", "Its first key goes with every call."),
        ]
    ):
        function = click.option(name, metavar=kind, help=text, expose_value=False, callback=_keep)(
            function
        )
    return click.option(
        "--insecure",
        is_flag=True,
        help="Plain text to other machines too.",
        expose_value=False,
        callback=_keep,
    )(function)


def given_credentials() -> Credentials:
    """Returns what the options of the command at hand say.

    Raises:
      click.UsageError: options that need others.
      ConfigError: a file that cannot be used.
    """
    given: dict[str, Any] = click.get_current_context().meta.get(_META, {})
    ca, certificate, key = (given.get(f"tls_{name}") for name in ("ca", "cert", "key"))
    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-cert, --tls-key: allowed: both or neither")
    for name in ("tls_cert", "tls_server_name"):
        if ca is None and given.get(name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')}: allowed with --tls-ca")
    key_file = given.get("api_key_file")
    keys = None if key_file is None else KeyFile(key_file, source="--api-key-file")
    tls = None
    if ca is not None:
        paths = TlsPaths(ca=ca, certificate=certificate, key=key)
        tls = TlsFiles(paths, source="--tls-")
    return Credentials(
        tls=tls,
        server_name=given.get("tls_server_name"),
        bearer=None if keys is None else keys.first,
        is_insecure=given.get("insecure", False),
    )


def connect(target: str) -> Client:
    """Returns a client of the server at `target` (HOST:PORT), with what the options say."""
    return Client(target, credentials=given_credentials())


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    context.meta.setdefault(_META, {})[parameter.name] = value
    return value
