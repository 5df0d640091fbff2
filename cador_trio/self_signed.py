"""A certificate made at start, for trials only (`CADOR_SELF_SIGNED`); needs the extra `self-signed`."""

from __future__ import annotations

import socket
import ssl

from cador_trio.errors import SettingsError


def use_self_signed(context: ssl.SSLContext) -> None:
    """Put a fresh certificate for this host into the context; it lives as long as the process.

    Raises:
        SettingsError: the extra is not installed.
    """
    try:
        import trustme  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise SettingsError(
            ["CADOR_SELF_SIGNED: needs the extra: pip install 'cador-trio[self-signed]', or give a certificate"]
        ) from error
    authority = trustme.CA(organization_name="cador-trio trial")
    names = ["localhost", "127.0.0.1", "::1"]
    try:
        certificate = authority.issue_cert(*names, socket.gethostname())
    except ValueError:  # a host name that is no DNS name, such as one with an underscore
        certificate = authority.issue_cert(*names)
    certificate.configure_cert(context)
