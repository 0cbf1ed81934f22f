"""The HTTP clients of all probes. Imports httpx only when one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synapse_ops.systems.http_probe import HttpProbe


class HttpClients:
    """One HTTP client for each set of authorities; all are closed together."""

    def __init__(self) -> None:
        self._clients: dict[str | None, HttpProbe] = {}

    def of(self, ca_file: str | None) -> HttpProbe:
        """Return the client that trusts `ca_file`, or the system's authorities. Raises ConfigError."""
        if ca_file not in self._clients:
            from synapse_ops.systems.http_probe import HttpProbe

            self._clients[ca_file] = HttpProbe(ca_file)
        return self._clients[ca_file]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
