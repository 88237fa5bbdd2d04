"""The engine that drives a fleet of vLLM servers over HTTP; see README.md here."""
