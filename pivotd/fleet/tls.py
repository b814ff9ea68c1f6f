"""The certificates with which this host and etcd prove to each other who they are."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from pivotd.errors import FleetRefusedError


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of [fleet]: ``ca`` None stands for the authorities of this host's system."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files, which may have been renewed since the last connection. Raises: FleetRefusedError."""
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except (OSError, ssl.SSLError) as error:
            raise FleetRefusedError(f"[fleet] ca: {self.ca}: {_why(error)}") from error
        # Python 3.13 asks for extensions that etcd's own clients do not, and that many private authorities lack.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except (OSError, ssl.SSLError) as error:
                raise FleetRefusedError(
                    f"[fleet] certificate: {self.certificate} with {self.key}: {_why(error)}"
                ) from error
        return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (
            "not a certificate and its key in PEM form"
            if error.reason is None
            else error.reason.lower().replace("_", " ")
        )
    return error.strerror or str(error)
