"""Certificates made for a test."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Authority:
    """A certificate authority with a folder for the files that it issues."""

    folder: Path
    ca: trustme.CA

    @classmethod
    def in_folder(cls, folder: Path) -> Authority:
        folder.mkdir()
        authority = cls(folder, trustme.CA())
        authority.ca.cert_pem.write_to_path(folder / "ca.pem")
        return authority

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def chain(self) -> Path:
        return self.folder / "chain.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    def issue(self, *names: str) -> None:
        """Write a certificate for these names, over the last one."""
        issued = self.ca.issue_cert(*(names or ("127.0.0.1", "::1")))
        self.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)

    def client_context(self) -> ssl.SSLContext:
        """For a client that trusts this authority."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def settings(self) -> dict[str, str]:
        """TLS with the issued certificate."""
        return {"CADOR_USE_SSL": "true", "CADOR_SSL_CERT": str(self.chain), "CADOR_SSL_KEY": str(self.key)}
