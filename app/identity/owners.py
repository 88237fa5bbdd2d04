"""Jobs run on behalf of the key that asked for them: what they publish is that key's, and the log says so."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.identity.keyring import caller_of
from app.settings import Settings
from store.actor import Actor, acting
from store.errors import UnknownKey
from store.jobs import Job
from store.keys import KeyTable


@contextmanager
def working_for(job: Job, keys: KeyTable, settings: Settings) -> Iterator[None]:
    """Run the block as the job's owner, who sees in it what they saw when it was queued, and where its result lands:
    what the job says goes to them."""
    with acting(_owner(job, keys, settings)):
        yield


def _owner(job: Job, keys: KeyTable, settings: Settings) -> Actor:
    if job.key_id is None:
        return Actor("spolia", job_id=job.id)
    try:
        caller = caller_of(keys.get(job.key_id), settings)
    except UnknownKey:
        return Actor("spolia", key_id=job.key_id, job_id=job.id)
    sight = caller.namespaces("read", "merge")
    return Actor(caller.name, key_id=job.key_id, job_id=job.id, sight=sight, quota=caller.limits.quota)
