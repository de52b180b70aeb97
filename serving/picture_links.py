"""Where pictures and videos of requests come from: data URLs, and over the network only hosts that were allowed.

A server that fetched whatever a client names would lend the client its place in the network (SSRF). So paths and
file:// URLs are refused, hosts must be named when the server starts, their addresses must be public ones, and
redirections are not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from ..runtimes.media.links import fetched
from .server_errors import Refusal


class PictureLinks:
    """Opens what a URL of a request names."""

    def __init__(self, hosts: Sequence[str], most_bytes: int) -> None:
        self.hosts, self.most_bytes = frozenset(host.lower() for host in hosts), most_bytes

    def open(self, url: str) -> str | bytes:
        """A data URL as it is, or the bytes behind an allowed link. Raises Refusal and InputError for anything else."""
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return url
        if scheme not in ("http", "https"):
            raise Refusal(400, f"{url[:80]!r} is no URL that this server opens; give data:image/...;base64, and the "
                          "bytes of the file", param="messages")  # fmt: skip
        host = _host(url)
        if host not in self.hosts:
            raise Refusal(400, f"this server does not fetch from {host[:80]!r}; send the picture as a data URL",
                          param="messages")  # fmt: skip
        return fetched(url, public=True, most_bytes=self.most_bytes)


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
