"""Where a broker is: ``host:port`` as text."""

from __future__ import annotations

from edge_runtime.errors import ConfigError


def parse_address(text: str) -> tuple[str, int]:
    """``host:port`` as its parts, an IPv6 host in brackets; `ConfigError` if it is neither."""
    host, _, port_text = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    numeric = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
    port = int(port_text) if numeric else 0
    spaced = any(character.isspace() for character in host)
    if not host or spaced or not 0 < port < 65536 or (":" in host and not bracketed):
        raise ConfigError(
            f"broker address {text!r}: expected host:port, such as 192.168.1.5:1883 or [::1]:1883"
        )
    return host, port
