"""HTTP handlers: parse, call, return."""
