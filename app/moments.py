"""Times as answers write them."""

from datetime import datetime


def time_json(moment: datetime) -> str:
    """A time in UTC by ISO 8601, with Z."""
    return moment.isoformat().replace("+00:00", "Z")
