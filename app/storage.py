"""Where files are kept, opened as the settings have it: a local folder, or an object store. Loads no model library."""

from app.settings import Settings
from store.blob_cache import BlobCache
from store.blobs import LocalBlobs
from store.partial_uploads import LocalUploads, PartialUploads
from store.s3_blobs import S3Blobs
from store.s3_uploads import S3Uploads


def open_blobs(settings: Settings) -> LocalBlobs | S3Blobs:
    """Where files are kept, as the settings have it. Raises StorageFull."""
    if (place := settings.s3) is None:
        return LocalBlobs(settings.blobs_dir)
    return S3Blobs(place, BlobCache(settings.blob_cache_dir, settings.s3_cache_bytes))


def open_uploads(settings: Settings, blobs: LocalBlobs | S3Blobs) -> PartialUploads:
    """Uploads in parts, kept where the blobs are. Raises StorageFull."""
    if isinstance(blobs, S3Blobs):
        return S3Uploads(blobs, settings.upload_expiry_s)
    return LocalUploads(blobs, settings.upload_expiry_s)
