"""Where a server listens: an address or a Unix socket, with or without TLS."""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from ra_hmd.core.errors import UserError
from ra_hmd.serve.options import AddressOptions

_BACKLOG = 2048
_SOCKET_MODE = 0o660


@contextlib.contextmanager
def listen(address: AddressOptions) -> Iterator[socket.socket]:
    """Open the socket of a server; a Unix socket is removed at the end.

    Raises:
        UserError: the address or the path cannot be listened on.
    """
    if address.uds is None:
        with _listen_on_port(address.host, address.port) as listening:
            yield listening
        return
    with _listen_on_path(address.uds) as listening:
        try:
            yield listening
        finally:
            address.uds.unlink(missing_ok=True)


def _listen_on_port(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: {_reason(error)}; choose another, `--port 0` takes a free one."
        ) from error


def _listen_on_path(path: Path) -> socket.socket:
    """Listen on a Unix socket, which its owner and group may use. One that a server left behind is replaced."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()
        listening.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise UserError(
            f"--uds {path}: {_reason(error)}; give the path of a file that does not exist, in a folder that does."
        ) from error
    return listening


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        with contextlib.suppress(OSError):
            asking.connect(str(path))
            return True
        return False


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None) or 0  # negative where a host name is unknown
    return os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)


def address_of(listening: socket.socket, address: AddressOptions) -> str:
    """Address of a server as a client needs it; of a Unix socket its path."""
    if address.uds is not None:
        return f"unix:{address.uds}{address.root_path and f' {address.root_path}'}"
    host, port = listening.getsockname()[:2]
    scheme = "http" if address.ssl_certfile is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{address.root_path}"


def check_certificate(address: AddressOptions) -> None:
    """Raise `UserError` unless certificate and key can be read and belong together, before a model is loaded."""
    if address.ssl_certfile is None:
        return

    def refuse() -> str:
        raise UserError(f"The private key of {address.ssl_certfile} has a passphrase; give a key without one.")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(address.ssl_certfile, address.ssl_keyfile, password=refuse)
    except (OSError, ssl.SSLError) as error:
        files = " and ".join(str(file) for file in (address.ssl_certfile, address.ssl_keyfile) if file is not None)
        raise UserError(
            f"--ssl-certfile: {files}: {_reason(error)}; a certificate and its private key in PEM are needed."
        ) from error
