"""Versions that older rules refused to serve, judged again: what the service has learnt to serve since then is served.

A version keeps what was found when it was published, so that lists need not open files. When the rules have changed
(`facts.RULES`), the first start judges those again that are not served; what is served stays so.
"""

import logging

from app.facts import RULES, content_facts, match_base
from app.shelves import Shelves
from app.uploading import all_notes
from deltas.errors import DeltaError
from store.records import Version

log = logging.getLogger(__name__)


def judge_refused(shelves: Shelves) -> int:
    """Judge every version of a known base model that older rules refused; how many are served now.

    Only config and header are read. One that cannot be opened is left as it is, and said so in the log.
    """
    served = 0
    for version in shelves.registry.refused_before(RULES):
        try:
            served += _judge(shelves, version)
        except (DeltaError, OSError) as error:
            log.warning("%s could not be judged again: %s", version.ref, error)
    return served


def _judge(shelves: Shelves, version: Version) -> bool:
    adapter = shelves.open_adapter(version)
    match = match_base(shelves.registry, adapter)
    facts = content_facts(adapter, match.linears, match.modality)
    shelves.registry.judge_again(
        version,
        mergeable=facts["mergeable"],
        servable=facts["servable"],
        predictable=facts["predictable"],
        notes=all_notes(shelves, adapter, match),
        judged=RULES,
    )
    return bool(facts["servable"])
