"""What a revocation means for those who ask: whatever needs the version is refused, with the reason."""

from app.identity.caller import current
from app.problems import Refusal
from app.veil import Veil
from store.records import Version


class Revoked(Refusal):
    """The version must not be used any more."""

    def __init__(self, version: Version) -> None:
        mark = version.revoked[0]
        ancestor = Veil.over(version)(mark.ancestor)
        because = "" if ancestor == version.ref else f", because {ancestor}, which it was made from, is"
        detail = f"{version.ref} is revoked{because}: {mark.reason.rstrip('. ')}."
        super().__init__(410, "revoked", detail, reference=version.ref, ancestor=ancestor, reason=mark.reason)


def in_force(version: Version) -> Version:
    """The version, if it may be used. Raises Revoked."""
    if version.revoked:
        raise Revoked(version)
    return version


def readable(version: Version, *, audit: bool) -> Version:
    """The version, if its files may be read: a revoked one's by administrators who say that it is for an audit.

    Raises Revoked, Forbidden.
    """
    if not version.revoked or not audit:
        return in_force(version)
    current().check("admin", version.namespace)
    return version
