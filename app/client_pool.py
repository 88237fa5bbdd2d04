"""The Python client's calls about adapters in the engine's memory."""

from app.client_http import Json, Transport


class PoolVerbs:
    """What `Client` can ask of /v1/pool."""

    _http: Transport

    def pool(self) -> Json:
        """The adapters in memory, the memory that there is, and the queue."""
        return self._http.json("GET", "/v1/pool")

    def load(self, ref: str, *, pinned: bool = False) -> Json:
        """Load an adapter before anybody asks for it; `pinned` keeps it there, False takes a pin off."""
        return self._http.json("POST", "/v1/pool/load", json={"ref": ref, "pinned": pinned})

    def unload(self, ref: str) -> Json:
        """Take an adapter out of memory; `state` is "unloaded", or "draining" while requests still run with it."""
        return self._http.json("POST", "/v1/pool/unload", json={"ref": ref})
