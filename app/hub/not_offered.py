"""What the Hub's clients may ask for and is not there: one sentence for each, instead of "nothing at this address"."""

import re

_REPO = r"/api/models/[^/]+/[^/]+"

# What is at these addresses on the Hub, and what there is here instead.
_SENTENCES: dict[str, str] = {
    r"/api/repos/move": "Spolia does not rename or move adapters: push it under the new name, then delete the old one.",
    rf"{_REPO}/settings": "Spolia keeps no settings of a repository: who sees it follows from the keys' namespaces.",
    rf"{_REPO}/super-squash/.+": "Spolia does not squash history: a version never changes; delete those not needed.",
    rf"{_REPO}/(?:discussions|pull-request)(?:/.*)?": "Spolia has no discussions and no pull requests: push to main.",
    rf"{_REPO}/like(?:rs)?": "Spolia does not count likes.",
    rf"{_REPO}/lfs-files(?:/.*)?": "Spolia does not list large files: a file goes with the last version that needs it.",
    rf"{_REPO}/user-access-request/.*": "Spolia has no access requests: an administrator makes a key with the scopes.",
    r"/api/collections(?:/.*)?": "Spolia has no collections: tags and aliases group adapters.",
    r"/api/(?:organizations|users)/.*": "Spolia has no pages of users: whoami says what a key may do.",
    r"/api/settings/.*": "Spolia keeps no settings of users, and calls no webhooks.",
    r"/api/models-tags-by-type": "Spolia keeps no list of the tags that there may be.",
}  # fmt: skip
_COMPILED = [(re.compile(address), sentence) for address, sentence in _SENTENCES.items()]


def not_offered(path: str) -> str | None:
    """Why nothing is at an address of the Hub's; None where the Hub has nothing there either."""
    return next((sentence for address, sentence in _COMPILED if address.fullmatch(path)), None)
