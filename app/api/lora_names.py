"""vLLM's calls that load and unload adapters by a name of the client's choice, which then works as `model`.

The name is kept until it is unloaded, across restarts and processes, and means the version that the reference meant
when it was loaded. Status codes are vLLM's: 200 with a sentence, 400 for what it calls InvalidUserInput, 404.
"""

import asyncio
from pathlib import Path

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import Field, StrictBool

from app.answer_docs import UNNAMED
from app.api.access import HouseDep, needs
from app.generation import model_version
from app.house import House
from app.identity.caller import current
from app.problems import Refusal
from app.schemas import Body, FreeText
from app.uploading import CARD_FILE, Upload, publish_file
from serving.engine import Engine
from store.actor import SERVICE, acting, current_actor
from store.records import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Version
from store.references import is_name

router = APIRouter(prefix="/v1", tags=["generation"])

LOCAL = "local"
"""The namespace of adapters that were loaded from a folder."""


class LoadBody(Body):
    """vLLM's request. `lora_path` is a reference, or a folder below SPOLIA_LORA_PATH_FOLDER."""

    lora_name: FreeText = Field("", max_length=512)
    lora_path: FreeText = Field("", max_length=4096)
    load_inplace: StrictBool = False
    is_3d_lora_weight: StrictBool = False


class UnloadBody(Body):
    """vLLM's request. `lora_int_id` is its server's own number, and not looked at."""

    lora_name: FreeText = Field("", max_length=512)
    lora_int_id: int | None = None


@router.post("/load_lora_adapter", dependencies=[needs("write")], responses=UNNAMED, response_class=PlainTextResponse)
async def load_lora_adapter(house: HouseDep, body: LoadBody) -> PlainTextResponse:
    """Give a name to an adapter, and load it."""
    version, before = await to_thread.run_sync(_version, house, body)
    if isinstance(house.engine, Engine):
        await asyncio.wrap_future(house.engine.pool.load(version.digest, pinned=False))
    while not await to_thread.run_sync(house.shelves.model_names.set, body.lora_name, version, before):
        before = await to_thread.run_sync(_before, house, body)  # somebody was quicker: refused, or in place of that
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/unload_lora_adapter", dependencies=[needs("write")], responses=UNNAMED, response_class=PlainTextResponse)
def unload_lora_adapter(house: HouseDep, body: UnloadBody) -> PlainTextResponse:
    """Take a name away. The adapter stays in the registry, and in memory while there is room."""
    if not body.lora_name:
        raise _invalid("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    ref = house.shelves.model_names.ref(body.lora_name)
    if ref is None:
        raise Refusal(404, "not-found", f"The lora adapter {body.lora_name[:96]!r} cannot be found.", field="lora_name")
    current().check("write", ref.partition("/")[0])
    house.shelves.model_names.forget(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _version(house: House, body: LoadBody) -> tuple[Version, str | None]:
    """The version that shall have the name, and what the name means so far. Whatever is wrong with the request is found
    here."""
    if not body.lora_name or not body.lora_path:
        raise _invalid("Both 'lora_name' and 'lora_path' must be provided.", "lora_name")
    if body.is_3d_lora_weight:
        raise _invalid("'is_3d_lora_weight' is not supported: experts are read from their own tensors.", None)
    if body.lora_name == house.base.name:
        raise _invalid(f"The lora adapter '{body.lora_name}' conflicts with a served base model.", "lora_name")
    if not is_name(body.lora_name):
        detail = (
            f"The name {body.lora_name[:96]!r} is not possible: use A-Z a-z 0-9 . _ - ; names with a namespace are"
            " references, which work as `model` without being loaded."
        )
        raise _invalid(detail, "lora_name")
    folder = body.lora_path.startswith(("/", "./", "../", "~"))
    version = None if folder else model_version(house, body.lora_path)
    before = _before(house, body)
    version = _from_folder(house, body) if folder else version
    if version is None:
        raise _invalid(f"'{body.lora_path}' is the base model, which needs no loading.", "lora_path")
    current().check("write", version.namespace)
    return version, before


def _before(house: House, body: LoadBody) -> str | None:
    """What the name means now, if the request may give it another meaning. Raises Refusal if it may not."""
    with acting(SERVICE):  # one list for the whole service: a name may be taken for what the caller does not see
        before = house.shelves.model_names.ref(body.lora_name)
    if before is None:
        return None
    namespace = before.partition("/")[0]
    if not current_actor().sees(namespace):
        raise _invalid(f"The name '{body.lora_name}' is taken: choose another.", "lora_name")
    if not body.load_inplace:
        detail = (
            f"The lora adapter '{body.lora_name}' has already been loaded. If you want to load the adapter in place,"
            " set 'load_inplace' to True."
        )
        raise _invalid(detail, "lora_name")
    current().check("write", namespace)
    return before


def _from_folder(house: House, body: LoadBody) -> Version:
    """Upload the adapter of a folder. Raises Refusal unless the folder lies where the settings allow it."""
    allowed = house.settings.lora_path_folder
    if allowed is None:
        detail = (
            "'lora_path' is a path on this machine, which is not allowed here (SPOLIA_LORA_PATH_FOLDER): push the"
            " adapter, and give its reference."
        )
        raise _invalid(detail, "lora_path")
    folder = Path(body.lora_path).resolve()
    if not folder.is_relative_to(allowed.resolve()) or not (folder / WEIGHTS_FILE).is_file():
        detail = f"There is no adapter at {body.lora_path[:200]!r} below the folder that is allowed here."
        raise Refusal(404, "not-found", detail, field="lora_path")
    current().check("write", LOCAL)
    texts = {path: folder / path for path in (CONFIG_FILE, CARD_FILE, TOKENIZER_FILE) if (folder / path).is_file()}
    upload = Upload(
        LOCAL,
        body.lora_name,
        texts[CONFIG_FILE].read_bytes() if CONFIG_FILE in texts else None,
        texts[CARD_FILE].read_text("utf-8", errors="replace") if CARD_FILE in texts else None,
        tokenizer=texts[TOKENIZER_FILE].read_bytes() if TOKENIZER_FILE in texts else None,
    )
    with (folder / WEIGHTS_FILE).open("rb") as weights:
        version, _ = publish_file(house.shelves, upload, weights)
    served = model_version(house, version.ref)
    assert served is not None
    return served


def _invalid(detail: str, field: str | None) -> Refusal:
    return Refusal(400, "invalid-user-input", detail, field=field)
