"""A look at the fleet from outside."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server: its address, whether it is in use, requests on it, and adapters (served name -> requests)."""

    url: str
    up: bool
    running: int
    adapters: dict[str, int]


@dataclass(frozen=True, slots=True)
class FleetState:
    """Requests without a token yet and with one; adapters on any server (served name -> requests), and the bytes of
    those in the shared folder."""

    waiting: int
    running: int
    resident: dict[str, int]
    resident_bytes: int
    servers: tuple[ServerState, ...]

    @property
    def alive(self) -> bool:
        """Whether any server is up."""
        return any(server.up for server in self.servers)
