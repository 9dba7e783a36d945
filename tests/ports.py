"""Ports of the loopback address for servers that tests start."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 20_000, 32_000
"""Above the ports of Ray's workers (10002 to 19999), below those that Linux gives to whoever asks for any."""


_ports = iter(random.SystemRandom().sample(range(LOWEST, HIGHEST), HIGHEST - LOWEST))


def free_port() -> int:
    """A port that nobody has, and that nobody who asks for any port gets in the meantime; each is given once."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no port is free")
