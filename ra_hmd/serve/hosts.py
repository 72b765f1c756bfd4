"""Names by which a service is called. Standard library only: asked before it is known what is installed."""

import ipaddress
import re
from urllib.parse import urlsplit

from ra_hmd.core.errors import UserError

_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_NAME = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_PORT = re.compile(r":[0-9]*$")
_OWN = ("/v1", "/console", "/health", "/ready", "/metrics", "/docs")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")


def normalize_host(value: str) -> str:
    """The name of a host in the one spelling in which names are compared: in small letters, without scheme, port and
    the dot at its end, an IP address in its shortest form, other alphabets as browsers send them (IDNA).

    Args:
        value: A Host header, a name, an IP address, or the address of a site; `*` and `*.example.org` are kept.

    Raises:
        UserError: what has a path or a user, or can be no name.
    """
    problem = UserError(
        f"{value!r} is no name of a host; write memes.example.org, *.example.org or 192.0.2.7, several names each with "
        "an option of its own."
    )
    rest, netloc = "", value
    if "://" in value:
        try:
            parts = urlsplit(value)
        except ValueError:
            raise problem from None
        netloc, rest = parts.netloc, parts.path.strip("/") + parts.query + parts.fragment
    # An IPv6 address without brackets has no port.
    name = netloc if netloc.count(":") > 1 and not netloc.startswith("[") else _PORT.sub("", netloc)
    name = name.removeprefix("[").removesuffix("]").lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        name = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        raise problem from None
    if rest or not (name == "*" or _NAME.fullmatch(name)):
        raise problem
    return name


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def normalize_root_path(value: str) -> str:
    """The path that a service lies under, without a slash at its end; `/` is none.

    Raises:
        UserError: what is no path, or begins one of the service's own.
    """
    path = value.rstrip("/")
    if not _PATH.fullmatch(path) or any(part in (".", "..") for part in path.split("/")):
        raise UserError(f"--root-path {value!r} is no path; write it as /memes, without the name of a host.")
    if any(own == path or own.startswith(path + "/") for own in _OWN) and path:
        raise UserError(f"--root-path {value}: the service has pages of its own there; choose another path.")
    return path
