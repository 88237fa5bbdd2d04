"""What the client does with HTTP: requests, errors as sentences, pages, streams of events, counted uploads."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx

Json = dict[str, Any]
Progress = Callable[[int, int], None]
"""Called with (done, total): bytes of an upload or download, modules of a merge."""

CHUNK_BYTES = 1024 * 1024
READ_TIMEOUT_S = 600.0


class SpoliaError(Exception):
    """What the service refused, or that it could not be reached; `str()` is the one sentence that says so.

    `problem` is the problem JSON of the answer (RFC 9457): type, title, status, detail, and what the error adds.
    """

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem: Json = dict(problem)
        super().__init__(str(self.problem.get("detail") or self.problem.get("title") or "The request failed."))

    @property
    def status(self) -> int:
        """The HTTP status; 0 when there was no answer."""
        return int(self.problem.get("status") or 0)

    @property
    def slug(self) -> str:
        """The last part of the problem's type, such as `unknown-reference`."""
        return str(self.problem.get("type", "")).rpartition(":")[2]


def problem_error(slug: str, detail: str) -> SpoliaError:
    """An error that the client itself raises, in the service's shape."""
    title = slug.replace("-", " ").capitalize()
    return SpoliaError({"type": f"urn:spolia:problem:{slug}", "title": title, "status": 0, "detail": detail})


class Transport:
    """One connection pool to one service."""

    def __init__(self, url: str, api_key: str | None) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise problem_error("bad-key", "The API key holds characters that no key has: was it copied whole?")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        # trust_env off: the service is an address that was given, not one to be reached through a proxy of the web.
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=10.0)
        # An idle connection is left before the service leaves it (uvicorn does after 5 s), so that none is found dead.
        limits = httpx.Limits(keepalive_expiry=2.0)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def json(self, method: str, path: str, *, once: bool = False, **options: Any) -> Json:
        """The JSON of one answer; {} when it has no body. Raises SpoliaError for every status from 400 on.

        `once`: the request has a key by which the service does it once, however often it is sent.
        """
        if once:
            options["headers"] = {**options.get("headers", {}), "Idempotency-Key": str(uuid.uuid4())}
        with self._clear_errors():
            try:
                response = self._http.request(method, path, **options)
            except httpx.RemoteProtocolError:
                if method != "GET" and not once:  # a question can be asked twice without a second thought
                    raise
                response = self._http.request(method, path, **options)
        _check(response)
        answer: Json = response.json() if response.content else {}
        return answer

    def headers(self, method: str, path: str, **options: Any) -> Mapping[str, str]:
        """The headers of one answer. Raises SpoliaError for every status from 400 on."""
        with self._clear_errors():
            response = self._http.request(method, path, **options)
        _check(response)
        return response.headers

    def bytes(self, method: str, path: str) -> bytes:
        """The body of one answer as it came. Raises SpoliaError for every status from 400 on."""
        with self._clear_errors():
            response = self._http.request(method, path)
        _check(response)
        return response.content

    def status(self, method: str, path: str) -> int:
        """The status of one answer, whatever it is."""
        with self._clear_errors():
            return self._http.request(method, path).status_code

    def pages(self, path: str, params: Mapping[str, Any]) -> Iterator[Json]:
        """The items of a list, page after page."""
        asked = {key: value for key, value in params.items() if value is not None}
        while True:
            page = self.json("GET", path, params=asked)
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            asked["cursor"] = page["next_cursor"]

    def events(self, method: str, path: str, **options: Any) -> Iterator[tuple[str, str]]:
        """Server-sent events as (event, data); the event is "message" where none is named."""
        headers = {"Accept": "text/event-stream"}
        with self._clear_errors(), self._http.stream(method, path, headers=headers, **options) as response:
            if response.is_error:
                response.read()
            _check(response)
            event, data = "message", list[str]()
            for line in response.iter_lines():
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "event":
                    event = value
                elif field == "data":
                    data.append(value)
                elif not line and data:
                    yield event, "\n".join(data)
                    event, data = "message", []

    def download(
        self,
        path: str,
        target: Path,
        digest: str | None,
        on_bytes: Callable[[int], None],
        params: Mapping[str, Any] | None = None,
    ) -> Mapping[str, str]:
        """Stream one file to `target`; it appears there only if its sha256 is `digest` (hex; None: the ETag's).

        The answer is its headers.
        """
        partial = target.with_name(f".{target.name}.part")
        found = hashlib.sha256()
        try:
            with self._clear_errors(), self._http.stream("GET", path, params=params, follow_redirects=True) as response:
                if response.is_error:
                    response.read()
                _check(response)
                headers = (response.history or [response])[0].headers
                digest = digest or headers.get("etag", "").strip('"').removeprefix("sha256:")
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes(CHUNK_BYTES):
                        file.write(chunk)
                        found.update(chunk)
                        on_bytes(len(chunk))
            if found.hexdigest() != digest:
                detail = f"{target.name} arrived with sha256 {found.hexdigest()}, not {digest}; nothing was kept."
                raise problem_error("digest-mismatch", detail)
            partial.replace(target)
            return headers
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn failures of the connection into sentences."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            detail = f"No service answers at {self.url}; start one with `spolia serve`, or name another with --url."
            raise problem_error("unreachable", detail) from None
        except httpx.TransportError as error:
            detail = f"The connection to {self.url} broke: {str(error).rstrip('.') or type(error).__name__}."
            raise problem_error("connection-broken", detail) from None
        except httpx.InvalidURL as error:
            raise problem_error("bad-url", f"{self.url!r} is not the address of a service: {error}.") from None


class CountedFile:
    """A file that says how many bytes were read from it; httpx reads it as it sends."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        chunk = self._file.read(size)
        self._on_bytes(len(chunk))
        return chunk

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(CHUNK_BYTES):
            yield chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move, as files do."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where the file is."""
        return self._file.tell()


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(response: httpx.Response) -> None:
    """Raise the answer's problem as SpoliaError."""
    if response.is_success:
        return
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if not isinstance(body, dict) or "detail" not in body:
        error = body.get("error") if isinstance(body, dict) else None
        sentence = error.get("message") if isinstance(error, dict) else None
        request = response.request
        fallback = f"{request.method} {request.url.path} was answered with {response.status_code}."
        body = {"type": "about:blank", "title": response.reason_phrase, "detail": sentence or fallback}
    raise SpoliaError({"status": response.status_code, **body})
