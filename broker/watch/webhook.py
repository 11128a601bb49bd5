"""Calls of users' webhooks: bounded in time and size, and never to an address inside the operator's network.

Whoever may keep a list names a host; without a guard the server would fetch from databases and metadata services that
only it can reach. So the name is resolved here, each address it has must be public, and the connection goes to the very
address that was looked at: a name that resolves to another one a moment later changes nothing. Redirects are not
followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_LONGEST: Final = 2000
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_SPECIAL: Final = tuple(ipaddress.ip_network(network) for network in ("192.0.0.0/24", "3fff::/20"))
"""Of IANA's registries of special-purpose addresses, which Python 3.11.7 takes for public (CVE-2024-4032); a cloud has
its metadata in the first."""
ANSWER: Final = 1 << 20
"""Bytes that are read of an answer."""


class WebhookError(Exception):
    """A call that failed; the message has nothing of the URL but its host."""

    answered: bool = False
    """Whether the receiver has said no, and did not fail to answer."""


def check_url(url: str, networks: Sequence[str]) -> SplitResult:
    """The parts of a URL that may be called; raises ValueError. Its host is looked at when it is called."""
    if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"a URL has at most {_LONGEST} characters of ASCII, without spaces")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and networks):
        raise ValueError("give a URL that begins with https://")
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.port == 0:
        raise ValueError("a URL has a host, and no login")
    if "\\" in url or parts.fragment:
        raise ValueError("a URL has no \\ and no #")
    literal = _literal(parts.hostname)
    if literal is not None and not is_allowed(literal, networks):
        raise ValueError(f"{literal} is no public address")
    return parts


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_allowed(address: Address, networks: Sequence[str]) -> bool:
    """Whether an address is public, or in a network that the operator allows."""
    inner = _inner(address)
    if any(inner in ipaddress.ip_network(network) for network in networks):
        return True
    if any(inner in network for network in _SPECIAL):
        return False
    if isinstance(inner, ipaddress.IPv6Address) and inner.is_site_local:
        return False
    return inner.is_global and not (inner.is_multicast or inner.is_reserved or inner.is_unspecified)


def _inner(address: Address) -> Address:
    """The IPv4 address that a gateway would make of an IPv6 one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a call."""

    host: str
    status: int
    body: bytes
    """The first ANSWER bytes."""


def post(url: str, payload: dict[str, Any], number: str, networks: Sequence[str], timeout: float) -> None:
    """Send JSON; raises WebhookError unless the answer is 2xx.

    ``number`` is told in ``Idempotency-Key`` and ``X-Trifid-Delivery``, the same in each attempt. ``timeout`` is in
    seconds, for all of it.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "Trifid", "Idempotency-Key": number}
    headers["X-Trifid-Delivery"] = number
    answer = call("POST", url, json.dumps(payload).encode(), headers, networks, timeout)
    if not 200 <= answer.status < 300:
        error = WebhookError(f"{answer.host} answers {answer.status}")
        error.answered = True
        raise error


def call(
    method: str, url: str, body: bytes, headers: Mapping[str, str], networks: Sequence[str], timeout: float
) -> Answer:
    """Whatever is answered; raises WebhookError where nothing is within ``timeout`` seconds."""
    try:
        parts = check_url(url, networks)
    except ValueError as error:
        raise WebhookError(str(error)) from None
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    end = time.monotonic() + timeout
    late = f"{host}: no answer within {timeout:g} s"
    address = _resolved(host, port, networks, timeout)
    if not secure and not any(_inner(address) in ipaddress.ip_network(network) for network in networks):
        raise WebhookError(f"{host}: http is for allowed networks only, use https")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    left = end - time.monotonic()
    if left <= 0.0:
        raise WebhookError(late)
    connection = _Connection(host, port, str(address), secure, left)
    # A socket's own timeout begins anew with each byte.
    deadline = threading.Timer(left, connection.abort)
    deadline.start()
    try:
        connection.request(method, path, body, {**headers, "Connection": "close"})
        answer = connection.getresponse()
        content = answer.read(ANSWER)
        if connection.aborted:  # what was cut looks like an answer that ended early
            raise WebhookError(late)
        return Answer(host, answer.status, content)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if connection.aborted:
            raise WebhookError(late) from None
        # Of others' messages only the kind: they may quote the path, which is a secret.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise WebhookError(f"{host}: {reason}") from None
    finally:
        deadline.cancel()
        connection.close()


def _resolved(host: str, port: int, networks: Sequence[str], timeout: float) -> Address:
    """The system's resolver has no timeout that can be given: it is asked in a thread that may outlive the call."""
    answers: queue.SimpleQueue[set[Address] | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            told = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put({ipaddress.ip_address(one[4][0]) for one in told})
        except (OSError, UnicodeError, ValueError):
            answers.put(None)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        found = answers.get(timeout=timeout)
    except queue.Empty:
        raise WebhookError(f"{host}: its name is not resolved within {timeout:g} s") from None
    if not found:
        raise WebhookError(f"{host}: no such host")
    for address in found:
        if not is_allowed(address, networks):
            raise WebhookError(f"{host} is {address}, no public address (notify.webhook_networks)")
    return min(found, key=lambda address: (address.version, int(address)))


class _Connection(http.client.HTTPConnection):
    """To one address, whatever the host's name resolves to by now."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address, self._secure = address, secure
        # Stays when HTTPConnection lets go of ``sock``, as it does before the answer's body is read.
        self._open: socket.socket | None = None
        self.aborted = False

    def connect(self) -> None:
        """As HTTPSConnection does, with the name for the certificate."""
        self._keep(socket.create_connection((self._address, self.port), self.timeout))
        if self._secure:
            # Wrapping takes the connection from the plain socket: only the new one can be aborted.
            secure = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self._keep(secure)
            secure.do_handshake()
            self._keep(secure)

    def _keep(self, sock: socket.socket) -> None:
        self.sock = self._open = sock
        if self.aborted:
            raise TimeoutError

    def abort(self) -> None:
        """End what is going on, from another thread."""
        self.aborted = True
        sock = self._open
        if sock is not None:
            try:
                # Not SSLSocket's own, which has the other thread go on without encryption.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                sock.close()
