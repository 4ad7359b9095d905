"""Certificates and keys made for one test, as files."""

import pathlib
from dataclasses import dataclass

import trustme

from memserve_jax.core.tls_files import TlsPaths

CLUSTER_NAME = "cluster.test"  # in the certificates of members


@dataclass(frozen=True)
class Authority:
    """A certificate authority whose files go into `folder`."""

    folder: pathlib.Path
    ca: trustme.CA

    def issue(self, name: str, *names: str) -> TlsPaths:
        """Writes a certificate for the DNS names or addresses `names`; in place of one before."""
        issued = self.ca.issue_cert(*names)
        paths = TlsPaths(
            ca=str(self.folder / "ca.pem"),
            certificate=str(self.folder / f"{name}.pem"),
            key=str(self.folder / f"{name}.key"),
        )
        assert paths.certificate is not None
        assert paths.key is not None
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        pathlib.Path(paths.key).write_bytes(issued.private_key_pem.bytes())
        pathlib.Path(paths.certificate).write_bytes(chain)
        return paths


def make_authority(folder: pathlib.Path) -> Authority:
    """Returns a new authority; its certificate is `folder`/ca.pem."""
    folder.mkdir(exist_ok=True)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    return Authority(folder, ca)


def write_keys(path: pathlib.Path, *lines: str) -> str:
    """Writes a file of keys, and returns its path."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)
