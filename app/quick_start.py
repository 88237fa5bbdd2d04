"""Starting a process whose libraries make hundreds of thousands of objects that stay.

    python -P -m app.quick_start app.worker [ARGUMENT…]     `main(ARGUMENT…)` of that module

While they load, the garbage collector would look through all of them over and over, which takes a good part of a
start and finds nothing. Here it rests meanwhile, and leaves what was loaded alone from then on, which also
keeps its long pauses out of answers.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def loading() -> Iterator[None]:
    """What is imported in this block stays until the process ends."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main(module: str, *arguments: str) -> None:
    """Import a module and run its `main`."""
    with loading():
        loaded = import_module(module)
    loaded.main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
