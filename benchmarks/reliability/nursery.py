"""Gives birth to Spolia's processes in a moment: it holds their imports, and forks. `python -m …nursery`, by forked.py.

Loading the libraries takes seconds of processor time. Where processes are killed all the time, a small machine would do
nothing else, and nobody would have anything under way when the next one dies. What a process does after its imports is
its own, as ever.
"""

import gc
import json
import os
import signal
import sys

import app.job_worker
import app.main  # noqa: F401  both are for the children
from app.cli import main


def become(words: list[str], environment: dict[str, str], log: str) -> None:
    """Be `spolia WORDS…` with this environment from here on; what it says goes to the end of the file `log`."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    silence, paper = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target, handle in ((0, silence), (1, paper), (2, paper)):
        os.dup2(handle, target)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["spolia", *words]
    main()


def serve() -> None:
    """Fork a child for each line of standard input and say its process id, until the lines end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    while line := sys.stdin.readline():
        if (child := os.fork()) == 0:
            become(**json.loads(line))
            return
        print(child, flush=True)


if __name__ == "__main__":
    serve()
