"""What a server is allowed and limited to."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from hada.extract.common.errors import UsageError

SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Settings:
    """The settings of a server.

    Attributes:
        host: The address it listens at.
        port: The port; 0 takes a free one.
        token: What clients must send as `Authorization: Bearer TOKEN`; None asks for nothing.
        most_bytes: Of an image file.
        most_pixels: Of an image.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    most_bytes: int = 10 << 20
    most_pixels: int = 40_000_000

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise UsageError(f"--token: expected at least {SHORTEST_TOKEN} characters")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UsageError("--token: expected printable ASCII, which a header can hold")
        if not self.loopback and self.token is None:
            raise UsageError(
                f"--host {self.host}: others could search your images; give --token (or "
                "HADA_TOKEN), or stay at 127.0.0.1"
            )

    @property
    def loopback(self) -> bool:
        """Whether this machine alone reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
