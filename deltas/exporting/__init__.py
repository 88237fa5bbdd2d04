"""Adapters written in the form that one runtime loads (deltas/runtime.py)."""
