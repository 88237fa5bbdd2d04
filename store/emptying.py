"""What goes with the last version of an adapter: its tags, what its owner allowed, and the images kept of it.

Its row stays, so that no version number is given out twice. Another adapter may come under the name, of which nothing
was said; and whoever deletes all could not take back their consent any more, for there is nothing left to name.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.models import AdapterRow, ConsentRow, SurrogateRow


def empty(session: Session, adapter: AdapterRow) -> set[str]:
    """Leave an adapter without versions as if nothing had been said of it; the digests of images that went."""
    adapter.latest_number = None
    adapter.tags = []
    session.flush()  # holds the row against a distillation that is about to keep images
    own = SurrogateRow.adapter_id == adapter.id
    images = set(session.scalars(select(SurrogateRow.digest).where(own)))
    session.execute(delete(SurrogateRow).where(own))
    session.execute(delete(ConsentRow).where(ConsentRow.adapter_id == adapter.id))
    return images
