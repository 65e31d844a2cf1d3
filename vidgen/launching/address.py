"""Where the supervisors of a run meet: who leads, and how the others come there."""

import contextlib
import errno
import ipaddress
import os
import socket

DIAL_SECONDS = 5.0  # for a connection to come about
WAITING = 128  # connections that are not taken yet


def parse(text: str) -> tuple[str, int]:
    """The host and port of HOST:PORT; an IPv6 address has brackets.

    Raises:
        ValueError: If it is none.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} does not fit: an IPv6 address has brackets, [{host}]:PORT")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{text!r} does not fit: give HOST:PORT, such as node-0:29400")
    return host, int(port)


def join(host: str, port: int) -> str:
    """HOST:PORT."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def this_host() -> str:
    """The name of this machine: VIDGEN_LAUNCH_HOST where several have the same, as containers."""
    return os.environ.get("VIDGEN_LAUNCH_HOST") or socket.gethostname()


def is_here(host: str) -> bool:
    """Whether a host is this machine: one of its addresses can be bound.

    Raises:
        OSError: If its name is not known.
    """
    for family, kind, _, _, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(place)
            return True
    return False


def listen(host: str, port: int, lead: str = "auto") -> socket.socket | None:
    """Listens where the others will come, if this machine leads.

    That is the machine that HOST is; of several supervisors there, the one that gets the port.

    Args:
        host: As all machines know it.
        port: Of it.
        lead: "yes" leads whatever HOST is, "no" never.

    Returns:
        The socket; None where another one leads.

    Raises:
        OSError: If a machine that has to lead cannot listen.
    """
    try:
        if lead == "no" or (lead == "auto" and not is_here(host)):
            return None
    except socket.gaierror:  # it may be known in a moment
        return None
    family, place = _bind_to(host, port, lead)
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # soon after another one
        listener.bind(place)
        listener.listen(WAITING)
        listener.setblocking(False)
        return listener
    except OSError as error:
        listener.close()
        if lead == "auto" and error.errno == errno.EADDRINUSE:
            return None
        raise OSError(error.errno, error.strerror, join(host, port)) from error


def _bind_to(host: str, port: int, lead: str) -> tuple[int, tuple]:
    """The family and address to listen at.

    Many systems give their own name an address of the loopback, where no other machine comes.
    """
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    is_loopback = ipaddress.ip_address(place[0].partition("%")[0]).is_loopback
    if (is_loopback and not is_only_here(host)) or (lead == "yes" and not is_here(host)):
        return socket.AF_INET, ("", port)
    return family, place


def is_only_here(host: str) -> bool:
    """Whether a host is written as this machine itself, whoever reads it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def dial(host: str, port: int) -> socket.socket:
    """Connects to the supervisor that leads.

    Raises:
        OSError: If it does not answer.
    """
    return socket.create_connection((host, port), timeout=DIAL_SECONDS)
