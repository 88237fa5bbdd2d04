"""The house's top room: HTTP, jobs and the command line. It is the only room that knows all the others.

OpenMP reads OMP_WAIT_POLICY once, when torch is first imported, so it is set here, before any room that
imports torch. PASSIVE lets idle threads sleep: the API and the worker share the machine's cores, and spinning
threads of one slow the other down several times over.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
