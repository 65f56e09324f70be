"""How a server runs: address, access, limits."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

TOKEN_VARIABLE = "LLM2CLIP_TOKEN"
"""Environment variable with the token that clients must send."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of a server; the defaults serve this machine alone."""

    host: str = "127.0.0.1"
    """Address that is listened on."""
    port: int = 8000
    """TCP port; 0: any free one."""
    token: str | None = None
    """What clients must send as ``Authorization: Bearer TOKEN``; ``None``: nothing, on loopback only."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names under which clients may reach the server, for a reverse proxy."""
    max_body: int = 24 * 2**20
    """Largest request body in bytes."""
    timeout: float = 30.0
    """Longest time of a request in seconds, waiting included."""
    max_batch: int = 8
    """Most queries encoded in one forward pass."""
    max_wait: float = 0.003
    """Longest time in seconds for which a query waits for others to share its pass."""
    max_queue: int = 256
    """Queries that may wait; further ones are answered with 429."""
    cached_queries: int = 4096
    """Query vectors that are kept in memory."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        for name in ("max_body", "max_batch", "max_queue", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.token is not None and len(self.token) < 16:
            raise ValueError(f"a token must have at least 16 characters, got {len(self.token)}")
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached by other machines, so a token is required: set {TOKEN_VARIABLE} to at "
                "least 16 random characters, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether an address or name is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_of_environment() -> str | None:
    """The token in ``LLM2CLIP_TOKEN``; ``None`` if that is unset or empty."""
    return os.environ.get(TOKEN_VARIABLE) or None
