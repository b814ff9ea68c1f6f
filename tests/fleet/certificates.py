"""A certificate authority of its own for one test: server and client certificates, and some that must not do."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Certificates:
    """Files below ``directory``; made with the openssl program when the object is made."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / f"{name}.pem"
        _openssl("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", f"/CN={name}", "-keyout", self.key_of(self.ca),
                 "-out", self.ca)  # fmt: skip
        self.server = self.make("server", "IP:127.0.0.1,DNS:localhost")
        self.client = self.make("client")

    @staticmethod
    def key_of(certificate: Path) -> Path:
        """Return the file with the private key."""
        return certificate.with_suffix(".key")

    def make(self, name: str, names: str | None = None) -> Path:
        """Return a new certificate; ``names`` are the hosts that it is for, as openssl writes them."""
        certificate = self.directory / f"{name}.pem"
        request = self.directory / f"{name}.csr"
        _openssl("req", "-new", *_NEW_KEY, "-subj", f"/O={name}", "-keyout", self.key_of(certificate), "-out", request)
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(
            "extendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={names}\n" if names else "")
        )
        _openssl("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.key_of(self.ca), "-CAcreateserial",
                 "-days", "2", "-extfile", extensions, "-out", certificate)  # fmt: skip
        return certificate

    def context(self) -> ssl.SSLContext:
        """Return what a client needs."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the authority is one as a person makes it by hand
        context.load_cert_chain(self.client, self.key_of(self.client))
        return context


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
