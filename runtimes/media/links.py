"""Pictures and videos behind links: fetched where the caller names them, or for a stranger from public hosts alone."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from ...targets.errors import InputError

SECONDS = 30.0
MOST_BYTES = 256 << 20


class _NotMoved(urllib.request.HTTPRedirectHandler):
    """Links of strangers must not lead on to a host that was not looked at."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetched(link: str, *, public: bool = False, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes behind an http or https link.

    With `public`, for links that strangers name, its host must have public addresses, and redirections are not
    followed. Raises InputError where there are no bytes, or more than `most_bytes`.
    """
    if public:
        check_public(urlsplit(link).hostname or "")
    opener = urllib.request.build_opener(*([_NotMoved] if public else []))
    try:
        with opener.open(urllib.request.Request(link, headers={"User-Agent": "lensmith"}), timeout=SECONDS) as response:
            content: bytes = response.read(most_bytes + 1)
    except (OSError, ValueError, http.client.HTTPException, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{link[:200]} cannot be fetched ({reason}); send the file itself") from None
    if len(content) > most_bytes:
        raise InputError(f"{link[:200]} has more than {most_bytes} bytes; send a smaller file")
    return content


def check_public(host: str) -> None:
    """Raise InputError where the name of a host leads into the network of this machine."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        raise InputError(f"the host {host[:80]!r} is not known; send the file itself") from None
    if not all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_global for entry in found):
        raise InputError(f"{host[:80]!r} is not fetched from: its address is not a public one")
