"""Who asks, and what they may do: keys, scopes, limits, the audit log."""
