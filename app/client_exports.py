"""Exports as the client receives them: one file, or a zip whose files go into the folder."""

import json
import zipfile
from pathlib import Path

from app.client_http import Json, Progress, Transport, problem_error
from app.client_inputs import version_path

ARRIVING = ".export.part"
GGUF = "adapter.gguf"


def save_export(
    http: Transport, ref: str, target: str, folder: Path, max_rank: int | None, on_progress: Progress | None
) -> Json:
    """Fetch an export into `folder`; the answer is what the service says about it. See Client.export."""
    folder.mkdir(parents=True, exist_ok=True)
    arrived, done = folder / ARRIVING, 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if on_progress:
            on_progress(done, 0)

    params: Json = {"format": target} | ({} if max_rank is None else {"max_rank": max_rank})
    try:
        headers = http.download(f"{version_path(ref)}/export", arrived, None, count, params)
        if zipfile.is_zipfile(arrived):
            unpack(arrived, folder)
        else:
            arrived.replace(folder / GGUF)
    finally:
        arrived.unlink(missing_ok=True)
    summary: Json = json.loads(headers["spolia-export"])
    return summary


def unpack(archive: Path, folder: Path) -> None:
    """The files of a zip, which lie flat in `folder`. Raises SpoliaError for any other path."""
    with zipfile.ZipFile(archive) as zipped:
        for name in zipped.namelist():
            if name != Path(name).name or name in ("", ".", ".."):
                raise problem_error("bad-export", f"The export holds {name!r}, which is no plain file name.")
        zipped.extractall(folder)
