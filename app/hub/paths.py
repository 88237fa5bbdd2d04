"""Which files a repository takes, and how each travels: inside the commit, or ahead of it under its sha256."""

from pathlib import PurePosixPath
from typing import Literal

from app.problems import Refusal
from app.settings import Settings
from store.records import CONFIG_FILE, HEAD_FILE, WEIGHTS_FILE
from store.references import is_name

Mode = Literal["regular", "lfs"]

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
TENSORS = frozenset({WEIGHTS_FILE, HEAD_FILE})
IGNORED = frozenset({".gitattributes", ".gitignore", ".DS_Store"})
"""What git and desktops leave in folders: it is not taken, and needs no complaint."""


def check_path(path: str) -> None:
    """Raises Refusal for a file that a repository does not take, naming it and what to do."""
    shown = repr(path[:120])
    pure = PurePosixPath(path)
    if pure.suffix.lower() in PICKLES:
        raise Refusal(
            422,
            "pickle-refused",
            f"{shown} is not taken: such files are pickles, which can run code when they are opened. Save weights as"
            f' safetensors, and leave the rest out (hf upload … --exclude "*{pure.suffix}").',
            path=path[:120],
        )
    if "/" in path:
        raise Refusal(
            422,
            "invalid-name",
            f"{shown} is not taken: the files of an adapter lie at the top of its repository, not in folders.",
            path=path[:120],
        )
    if pure.suffix.lower() == ".safetensors" and path not in TENSORS:
        raise Refusal(
            422,
            "invalid-name",
            f"{shown} is not taken: a repository holds one adapter, whose weights are {WEIGHTS_FILE}, and perhaps"
            f" its head, {HEAD_FILE}.",
            path=path[:120],
        )
    if not is_name(path):
        raise Refusal(
            422,
            "invalid-name",
            f"{shown} is not taken: a file's name has 1 to 96 of the characters A-Z a-z 0-9 . _ - and starts with a"
            " letter or digit.",
            path=path[:120],
        )


def largest(path: str, settings: Settings) -> int:
    """The most bytes that a file of this name may have."""
    if path == WEIGHTS_FILE:
        return settings.max_upload_bytes
    if path == HEAD_FILE:
        return settings.max_head_bytes
    return settings.max_config_bytes if path == CONFIG_FILE else settings.max_tokenizer_bytes


def check_size(path: str, size_bytes: int, settings: Settings) -> None:
    """Raises Refusal for a file that is too large for what its name says it is."""
    limit = largest(path, settings)
    if size_bytes > limit:
        detail = f"'{path}' has {size_bytes} bytes; at most {limit} are accepted."
        raise Refusal(413, "body-too-large", detail, path=path, limit_bytes=limit)


def mode_of(path: str, size_bytes: int, settings: Settings) -> Mode:
    """How a file travels. Tensors never inside a commit, whose files are text in one body."""
    return "lfs" if path in TENSORS or size_bytes > settings.hub_inline_bytes else "regular"
