"""The environment of the processes that run jobs for this one."""

import os
from collections.abc import Mapping
from pathlib import Path

# Modules are merged side by side in threads; inside each, BLAS must not start threads of its own.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def child_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings, for a child that runs the same code.

    Whatever folder it was started in: it is to be run with -P, and finds the code by PYTHONPATH.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **settings, **_ONE_THREAD, "PYTHONPATH": path}
