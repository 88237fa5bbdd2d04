"""A network of its own for one process, with a cable that can be pulled (Linux, as root)."""

import subprocess
from contextlib import suppress

HERE, THERE = "10.213.0.1", "10.213.0.2"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Cable:
    """A network namespace joined to the machine's by a pair of devices; HERE is this side's address."""

    def __init__(self, name: str = "spolia-cut") -> None:
        self.name = name
        self.remove()
        _ip("netns", "add", name)
        _ip("link", "add", "spolia-here", "type", "veth", "peer", "name", "spolia-there", "netns", name)
        _ip("addr", "add", f"{HERE}/30", "dev", "spolia-here")
        _ip("link", "set", "spolia-here", "up")
        _ip("-n", name, "addr", "add", f"{THERE}/30", "dev", "spolia-there")
        _ip("-n", name, "link", "set", "spolia-there", "up")
        _ip("-n", name, "link", "set", "lo", "up")

    @property
    def prefix(self) -> list[str]:
        """What starts a program at the far end."""
        return ["ip", "netns", "exec", self.name]

    def pull(self) -> None:
        """Nothing passes any more, and nobody is told: packets vanish."""
        _ip("link", "set", "spolia-here", "down")

    def plug(self) -> None:
        """Packets pass again."""
        _ip("link", "set", "spolia-here", "up")

    def remove(self) -> None:
        """Take it all away."""
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self.name)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", "spolia-here")
