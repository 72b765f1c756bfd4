"""Host names and root paths of a service. Standard library only: they are checked before the `serve` extra is."""

import ipaddress
import re
from urllib.parse import urlsplit

from ra_hmd.core.errors import UserError

_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_NAME = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_ORIGIN = re.compile(rf"https?://({_LABEL}(\.{_LABEL})*|\[[0-9a-f:]+\])(:[0-9]+)?")
_PORT = re.compile(r":[0-9]*$")
_RESERVED_PATHS = ("/v1", "/console", "/health", "/ready", "/metrics", "/docs")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")


def normalize_host(value: str) -> str:
    """Normalize a host name for comparison: lower case, no scheme, port or final dot, IP addresses in their shortest
    form, other alphabets as browsers send them (IDNA).

    Args:
        value: Host header, host name, IP address or URL of a site; `*` and `*.example.org` are kept.

    Raises:
        UserError: the value has a path or a user, or is no host name.
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


def normalize_origin(value: str) -> str:
    """Normalize an origin as browsers send it: scheme, host and port, in lower case, without a path; `*` is any.

    Raises:
        UserError: the value is no origin.
    """
    origin = value.lower().removesuffix("/")
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise UserError(f"--allowed-origin {value!r} is no origin; write https://desk.example.org, without a path.")
    return origin


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address, which only programs on this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def normalize_root_path(value: str) -> str:
    """Normalize a root path: no slash at its end, and "" for `/`.

    Raises:
        UserError: the value is no path, or a prefix of one of the service's own paths.
    """
    path = value.rstrip("/")
    if not _PATH.fullmatch(path) or any(part in (".", "..") for part in path.split("/")):
        raise UserError(f"--root-path {value!r} is no path; write it as /memes, without the name of a host.")
    if any(own == path or own.startswith(path + "/") for own in _RESERVED_PATHS) and path:
        raise UserError(f"--root-path {value}: the service has pages of its own there; choose another path.")
    return path
