"""The object store's door: where it is, how long it is waited for, and its failures in our words.

Requests are retried by the client library (5xx, dropped connections, timeouts of what may be asked twice); what still
fails is a ObjectStoreUnavailable or ObjectStoreDenied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from store.blob_errors import MissingBlob, ObjectStoreDenied, ObjectStoreUnavailable

PART_BYTES = 8 << 20
"""What is sent in one request; larger objects go in parts of this size."""

_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket, a prefix in it, and how to reach it.

    Without keys, those of the environment (AWS_ACCESS_KEY_ID …) or of the machine's role are used. ``public_endpoint``
    is the address that presigned URLs name, where clients reach the store by another one than this service does.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: str | None = None
    public_endpoint: str | None = None
    retries: int = 5
    patience_s: float = 30.0

    @classmethod
    def parse(cls, url: str) -> tuple[str, str]:
        """(bucket, prefix) of ``s3://bucket/prefix``. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not of the form s3://bucket/prefix")
        return parts.netloc, parts.path.strip("/")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def open(self, public: bool = False) -> S3Store:
        """A client; ``public``: one whose URLs others can reach."""
        config: dict[str, Any] = {"region": self.region, "checksum_algorithm": "SHA256"}
        endpoint = (self.public_endpoint if public else None) or self.endpoint
        given = {"endpoint": endpoint, "access_key_id": self.access_key, "secret_access_key": self.secret_key}
        config |= {name: value for name, value in given.items() if value is not None}
        patience = timedelta(seconds=self.patience_s)
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            config=config,  # type: ignore[arg-type]
            # The whole of a large file takes longer than any sensible pause between two of its bytes.
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=min(5.0, self.patience_s)),
                "read_timeout": patience,
                "timeout": timedelta(hours=1),
            },
            retry_config={"max_retries": self.retries, "retry_timeout": patience},
        )


@contextmanager
def s3_errors_named(place: S3Place, digest: str | None = None) -> Iterator[None]:
    """Failures of the object store as StoreErrors; what is not found is MissingBlob(digest) where one is given.

    Raises:
        MissingBlob, ObjectStoreDenied, ObjectStoreUnavailable; FileNotFoundError without ``digest``.
    """
    try:
        yield
    except FileNotFoundError:
        if digest is None:
            raise
        raise MissingBlob(digest) from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise ObjectStoreDenied(str(place)) from error
    except BaseError as error:
        raise ObjectStoreUnavailable(str(place), _reason(error)) from error


def _reason(error: BaseException) -> str:
    """The first line of what the library says, without addresses: they are for the log."""
    said = str(error).strip().partition("\n")[0]
    if "non-2xx status code: " in said:
        answer = said.partition("non-2xx status code: ")[2].partition(":")[0][:_REASON_CHARS].strip()
        # A file that is not there is an error of its own.
        return f"it answered {answer}" + ("; is there such a bucket?" if answer.startswith("404") else "")
    if "after" in said and "retries" in said:
        return "it could not be reached, or broke off, again and again"
    return "it could not be reached, or broke off"
