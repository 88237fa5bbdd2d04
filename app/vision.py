"""The vision base: known to the registry like the text base, made once, in memory only while something needs it.

Its folder is made (converted or linked) by a process of its own, because that takes a hundred megabytes for some
seconds; after that, starting the service reads its card and nothing else.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

from app.facts import IMAGE, modality_of
from app.problems import Refusal
from app.settings import Settings
from app.shelves import Shelves
from deltas.base_folder import CARD, folder_name, read_card
from merging.recycle.errors import VisionBaseUnavailable
from merging.recycle.vision_base import VisionInfo, vision_info
from store.records import Base

log = logging.getLogger(__name__)

_MAKING_TIMEOUT_S = 300.0
DETAILS = ("origin", "architecture", "modality", "parameters", "patch_px", "width", "blocks", "embeddings", "experts")


def made_folder(settings: Settings) -> Path | None:
    """The vision base's folder, if it was made already."""
    for place in (*settings.model_folders, settings.prepared_models_dir):
        folder = place / folder_name(settings.vision_base)
        if settings.vision_base and (folder / CARD).is_file() and read_card(folder)["name"] == settings.vision_base:
            return folder
    return None


def register_made(shelves: Shelves) -> bool:
    """Make the vision base known to the registry, if its folder is there; whether it is."""
    folder = made_folder(shelves.settings)
    if folder is None:
        return False
    card = read_card(folder)
    if card.get("modality") != IMAGE:
        log.warning("'%s' is not known as a vision base: it is a model of text", shelves.settings.vision_base)
        return False
    details: dict[str, object] = {key: card[key] for key in DETAILS if key in card}
    details["folder"] = str(folder.resolve())
    modules = {name: (shape[0], shape[1]) for name, shape in card["modules"].items()}
    known = shelves.registry.base(card["name"])
    if known is None or known.fingerprint != card["fingerprint"] or known.details != details:
        shelves.registry.upsert_base(card["name"], card["fingerprint"], modules, details)
    return True


def know_vision_base(shelves: Shelves, name: str | None) -> None:
    """If `name` is the vision base of the settings and the registry does not know it yet: make it. Takes some seconds,
    once. One that cannot be made is said so in the log, and stays unknown."""
    if not name or name != shelves.settings.vision_base or shelves.registry.base(name) is not None:
        return
    try:
        make_vision_base(shelves)
    except VisionBaseUnavailable as error:
        log.warning("%s", error)


def make_vision_base(shelves: Shelves) -> None:
    """Make the vision base's folder where there is none, and register it. Raises VisionBaseUnavailable."""
    if register_made(shelves):
        return
    settings = shelves.settings
    places = [str(place.absolute()) for place in settings.model_folders]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    target = str(settings.prepared_models_dir.absolute())
    name = settings.vision_base
    command = ["-P", "-m", "merging.recycle.vision_base", "--name", name, "--target", target, "--search", *places]
    made = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=_MAKING_TIMEOUT_S,
        check=False,
    )
    if made.returncode != 0 or not register_made(shelves):
        log.warning("the vision base could not be made: %s", made.stderr.strip()[-2000:])
        raise VisionBaseUnavailable(settings.vision_base, settings.model_folders)


def image_base(shelves: Shelves, name: str | None) -> Base:
    """The vision base of this name (None: of the settings), known and on this machine.

    Raises:
        Refusal: there is no such base, or it is no vision base.
        VisionBaseUnavailable: it is known, but its files are not here.
    """
    wanted = name or shelves.settings.vision_base
    if wanted == shelves.settings.vision_base and wanted and shelves.registry.base(wanted) is None:
        make_vision_base(shelves)
    base = shelves.registry.base(wanted)
    known = [one.name for one in shelves.registry.bases() if modality_of(one) == IMAGE]
    if base is None or modality_of(base) != IMAGE:
        what = "is a base model of text" if base else "is not known here"
        detail = f"'{wanted[:200]}' {what}; the vision bases are {', '.join(known) or 'none'}."
        raise Refusal(422, "no-vision-base", detail, known=known)
    if not (Path(base.details["folder"]) / CARD).is_file():
        raise VisionBaseUnavailable(base.name, [Path(base.details["folder"])])
    return base


def info_of(base: Base) -> VisionInfo:
    """What can be known of a registered vision base without loading it. Raises VisionBaseUnsupported."""
    return vision_info(Path(base.details["folder"]))
