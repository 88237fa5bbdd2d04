"""A look at the fleet from outside."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server: its address, whether it is in use, requests on it, adapters (served name -> requests), and how many
    adapters were loaded onto it and taken off it since the start."""

    url: str
    up: bool
    running: int
    adapters: dict[str, int]
    loads: int = 0
    evictions: int = 0


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

    @property
    def turn_s(self) -> float:
        """The servers' own steps cannot be seen from here; one that hangs goes out of use."""
        return 0.0
