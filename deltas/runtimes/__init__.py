"""One file for each server that adapters are exported for; they are found by themselves (deltas/runtime.py)."""
