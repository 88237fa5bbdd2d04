"""How urgent a job may be said to be."""

from app.problems import Refusal
from app.settings import Settings


def allowed_priority(settings: Settings, priority: int) -> int:
    """The priority, if it lies within the bound of the settings. Raises Refusal."""
    most = settings.max_job_priority
    if abs(priority) > most:
        detail = f"The priority {priority} is beyond what is allowed here: from {-most} to {most}."
        raise Refusal(422, "bad-priority", detail, field="priority", limit=most)
    return priority
