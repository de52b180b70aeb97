"""What a server allows: where it listens, how much it takes at once, how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class ServerOptions:
    """Limits of a server; times in seconds.

    queue: requests that wait for a conversation, behind which further ones get status 429. deadline: of a whole answer.
    body_bytes, body_seconds: of a request's body. image_hosts: names of hosts that pictures may be fetched from over
    http or https; none by default. kept_bytes: of conversations that clients of /v1/responses may go on with by an id,
    in memory; 0 keeps none. shutdown_seconds: for answers that are open when the server is told to end.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    queue: int = 64
    deadline: float = 600.0
    most_new_tokens: int = 4096
    default_new_tokens: int = 1024
    body_bytes: int = 64 * MIB
    body_seconds: float = 30.0
    image_hosts: tuple[str, ...] = ()
    kept_bytes: int = 256 * MIB
    shutdown_seconds: float = 10.0
