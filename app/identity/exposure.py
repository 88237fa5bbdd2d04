"""Whether the service may listen where it was told to: beyond this machine only for callers it can tell apart."""

from app.loopback import is_loopback
from app.settings import Settings
from app.shelves import open_shelves


class RemoteRefused(SystemExit):
    """The host is beyond loopback, and no key is needed. Ends the process with the reason."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"Spolia does not listen on {host!r} while no API key is needed: whoever reaches that address could read,"
            " change and delete everything. Make a key first (`spolia keys create admin --grant '*=admin' --local`),"
            " or set SPOLIA_REQUIRE_KEYS=true and make one later; SPOLIA_ALLOW_REMOTE=true is for where something else,"
            " such as a proxy that asks for a password, keeps strangers out."
        )


def check_exposure(settings: Settings) -> None:
    """Raises RemoteRefused where strangers could reach a service that asks for no key."""
    if settings.allow_remote or settings.require_keys or is_loopback(settings.host):
        return
    if settings.database_url is None and not settings.database_file.exists():  # looking would make it
        raise RemoteRefused(settings.host)
    shelves = open_shelves(settings)
    try:
        shelves.database.migrate(allow_newer=settings.allow_newer_schema)
        if not shelves.keys.any():
            raise RemoteRefused(settings.host)
    finally:
        shelves.database.close()
