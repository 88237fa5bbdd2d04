"""The Python client's calls about recycling: distillations, consent, and predictions from a few labelled images."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.client_http import Json, Progress, Transport, problem_error
from app.client_inputs import Sources, adapter_path, part, source_list

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


class RecycleVerbs:
    """What `Client` can ask of /v1/distillations, /v1/predictions and adapters' consent."""

    _http: Transport
    wait: Callable[..., Json]  # of `Client`

    def bases(self) -> Sequence[Json]:
        """The base models that the service knows, of text and of images."""
        items: Sequence[Json] = self._http.json("GET", "/v1/bases")["items"]
        return items

    def distil(
        self,
        name: str,
        sources: Sequence[str],
        *,
        profile: str = "benchmark",
        params: Mapping[str, Any] | None = None,
        base: str | None = None,
        dry_run: bool = False,
        wait: bool = True,
        on_progress: Progress | None = None,
    ) -> Json:
        """Distil vision adapters with their heads into one adapter `name` for few-shot predictions (LoRA Recycle).

        Every source's owner must allow inversion (`set_consent`). The answer is the finished job, whose result holds
        the new version's `ref`; with `wait=False` the job as it is queued; with `dry_run=True` the plan and its cost.
        """
        body: Json = {"name": name, "sources": list(sources), "profile": profile, "params": dict(params or {})}
        body |= {"base": base} if base else {}
        if dry_run:
            answer = self._http.json("POST", "/v1/distillations", json=body, params={"dry_run": "true"})
            plan: Json = answer["plan"]
            return plan
        job = self._http.json("POST", "/v1/distillations", json=body)
        return self.wait(job["id"], on_progress=on_progress) if wait else job

    def predict(
        self,
        support: Path | str | Mapping[str, Sequence[bytes]],
        queries: Path | str | Sequence[bytes],
        *,
        model: str | None = None,
        adapters: Sources | None = None,
        combine: str = "sum",
        px: int | None = None,
        distance: str = "euclidean",
        temperature: float = 1.0,
    ) -> Json:
        """Class probabilities of query images, by a few labelled ones.

        `support`: a folder with one folder of images for each class, or {class: [image bytes]}. `queries`: a folder of
        images, searched in all its folders, or image bytes. With folders each prediction says its `file`.
        """
        labelled = labelled_images(support)
        asked = query_images(queries)
        parts = [("support", (f"{i}", data, "application/octet-stream")) for i, (_, data) in enumerate(labelled)]
        parts += [("query", (name, data, "application/octet-stream")) for name, data in asked]
        form: Json = {"labels": [label for label, _ in labelled], "combine": combine, "distance": distance}
        form |= {"temperature": str(temperature)}
        form |= {"model": model} if model else {}
        form |= {"px": str(px)} if px else {}
        form |= {"adapters": json.dumps(source_list(adapters))} if adapters is not None else {}
        answer = self._http.json("POST", "/v1/predictions", data=form, files=parts)
        if isinstance(queries, (str, Path)):
            for prediction, (name, _) in zip(answer["predictions"], asked, strict=True):
                prediction["file"] = name
        return answer

    def consent(self, ref: str) -> Json:
        """What the owner of an adapter allows others to find out about its training."""
        return self._http.json("GET", f"{adapter_path(ref)}/consent")

    def set_consent(self, ref: str, *, inversion: bool, show_surrogates: bool = False) -> Json:
        """Allow distillations to make images out of an adapter and its head, and to keep and show them; or take that
        back, which removes what is kept."""
        body = {"inversion": inversion, "show_surrogates": show_surrogates}
        return self._http.json("PUT", f"{adapter_path(ref)}/consent", json=body)

    def surrogates(self, ref: str) -> Sequence[Json]:
        """The images that distillations made out of an adapter and that are kept."""
        items: Sequence[Json] = self._http.json("GET", f"{adapter_path(ref)}/surrogates")["items"]
        return items

    def save_surrogates(self, ref: str, surrogates_id: str, target: Path | str) -> Path:
        """Write one of `surrogates` to a file: a sheet of all images (.png), or their bytes (.safetensors)."""
        target = Path(target)
        file = "sheet.png" if target.suffix.lower() == ".png" else "images.safetensors"
        path = f"{adapter_path(ref)}/surrogates/{part(surrogates_id)}/{file}"
        target.write_bytes(self._http.bytes("GET", path))
        return target


def labelled_images(support: Path | str | Mapping[str, Sequence[bytes]]) -> list[tuple[str, bytes]]:
    """(class, image) pairs, class by class. Raises SpoliaError where a folder holds none."""
    if isinstance(support, Mapping):
        return [(label, data) for label, images in support.items() for data in images]
    folder = _folder(support)
    found = [
        (place.name, file.read_bytes())
        for place in sorted(folder.iterdir())
        if place.is_dir()
        for file in sorted(place.iterdir())
        if file.suffix.lower() in IMAGES
    ]
    if not found:
        detail = f"{folder} holds no images in folders; it needs one folder of PNG, JPEG or WebP files for each class."
        raise problem_error("no-images", detail)
    return found


def query_images(queries: Path | str | Sequence[bytes]) -> list[tuple[str, bytes]]:
    """(name, image) pairs; of a folder, all images below it. Raises SpoliaError where it holds none."""
    if not isinstance(queries, (str, Path)):
        return [(f"{index}", data) for index, data in enumerate(queries)]
    place = Path(queries)
    if place.is_file():
        return [(place.name, place.read_bytes())]
    folder = _folder(queries)
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGES and file.is_file()]
    if not files:
        raise problem_error("no-images", f"{folder} holds no PNG, JPEG or WebP files.")
    return [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in files]


def _folder(place: Path | str) -> Path:
    folder = Path(place)
    if not folder.is_dir():
        raise problem_error("no-images", f"{folder} is not a folder of images.")
    return folder
