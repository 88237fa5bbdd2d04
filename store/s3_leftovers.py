"""Multipart uploads that nobody finished: listed and aborted, which the client library offers no call for.

An upload whose process was killed stays in the bucket, invisible and paid for, until it is aborted. Two plain requests
do that, signed by AWS Signature Version 4 (docs.aws.amazon.com, "Create a signed AWS API request") with the keys of the
settings. Where keys come from elsewhere, a lifecycle rule of the bucket must do it (docs/operations.md).
"""

import hashlib
import hmac
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from store.blob_errors import ObjectStoreUnavailable
from store.s3 import S3Place

_EMPTY = hashlib.sha256().hexdigest()
_LISTED_BYTES = 4 << 20


def sweep_unfinished(place: S3Place, older_than_s: float, dry_run: bool = False) -> int:
    """Abort the multipart uploads below ``place`` that began so long ago; how many. Raises ObjectStoreUnavailable."""
    if place.access_key is None or place.secret_key is None:
        return 0
    prefix = f"{place.prefix}/" if place.prefix else ""
    listing = _request(place, "GET", "", {"max-uploads": "1000", "prefix": prefix, "uploads": ""})
    swept = 0
    for upload in ElementTree.fromstring(listing).iter():
        if _tag(upload) != "Upload":
            continue
        fields = {_tag(field): field.text or "" for field in upload}
        began = datetime.fromisoformat(fields["Initiated"].replace("Z", "+00:00"))
        if fields["Key"].startswith(prefix) and (datetime.now(UTC) - began).total_seconds() >= older_than_s:
            swept += 1
            if not dry_run:
                _request(place, "DELETE", fields["Key"], {"uploadId": fields["UploadId"]})
    return swept


def _tag(element: "ElementTree.Element") -> str:
    return element.tag.rpartition("}")[2]


def _request(place: S3Place, method: str, key: str, query: dict[str, str]) -> bytes:
    endpoint = (place.endpoint or f"https://s3.{place.region}.amazonaws.com").rstrip("/")
    path = urlsplit(endpoint).path + quote(f"/{place.bucket}/{key}".rstrip("/"))
    asked = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
    host = urlsplit(endpoint).netloc
    headers = signed_headers(place, method, host, path, asked, datetime.now(UTC))
    scheme = urlsplit(endpoint).scheme
    request = urllib.request.Request(f"{scheme}://{host}{path}?{asked}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=place.patience_s) as answer:
            listing: bytes = answer.read(_LISTED_BYTES)
            return listing
    except urllib.error.HTTPError as error:
        if error.code == 404:  # aborted or finished meanwhile
            return b"<none/>"
        raise ObjectStoreUnavailable(str(place), f"it answered {error.code}") from error
    except OSError as error:
        raise ObjectStoreUnavailable(str(place), "it could not be reached, or broke off") from error


def signed_headers(place: S3Place, method: str, host: str, path: str, query: str, now: datetime) -> dict[str, str]:
    """The headers of a signed request without a body."""
    moment, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": moment}
    names = ";".join(headers)
    lines = [method, path, query, *(f"{name}:{value}" for name, value in headers.items()), "", names, _EMPTY]
    scope = f"{day}/{place.region}/s3/aws4_request"
    canonical = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"AWS4{place.secret_key}".encode()
    for part in (day, place.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{canonical}".encode(), "sha256").hex()
    credential = f"AWS4-HMAC-SHA256 Credential={place.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return headers | {"authorization": credential}
