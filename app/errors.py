"""From exceptions to problem JSON: one row for each class of error that a request or a job can meet.

The rooms below say what is wrong in one sentence; this table adds the HTTP status and the problem's slug. A class
without a row takes its nearest ancestor's; a test asks that every leaf has a row of its own.
"""

import errno
from typing import Any

from sqlalchemy.exc import OperationalError

from app import job_errors
from app.limits import BodyTooLarge
from app.problems import Refusal, problem
from deltas import errors as deltas
from merging import errors as merging
from merging.recycle import errors as recycle
from serving import errors as serving
from store import blob_errors as files
from store import errors as store

Row = tuple[int, str]

TABLE: dict[type[Exception], Row] = {
    deltas.BadFile: (422, "bad-file"),
    deltas.BadConfig: (422, "bad-config"),
    deltas.BadTokenizer: (422, "bad-tokenizer"),
    deltas.BadTensors: (422, "bad-tensors"),
    deltas.NonFiniteTensor: (422, "non-finite-tensor"),
    deltas.UnknownModule: (422, "unknown-module"),
    deltas.ShapeMismatch: (422, "shape-mismatch"),
    deltas.MissingBaseTensor: (422, "missing-base-tensor"),
    deltas.NotClosed: (422, "not-closed"),
    deltas.NotLowRank: (422, "not-low-rank"),
    deltas.UnknownRuntime: (422, "unknown-runtime"),
    deltas.NotExportable: (422, "not-exportable"),
    merging.UnknownMethod: (422, "unknown-method"),
    merging.BadParams: (422, "bad-params"),
    merging.BadWeights: (422, "bad-weights"),
    merging.BadRank: (422, "bad-rank"),
    merging.BadSpace: (422, "bad-space"),
    merging.BaseMismatch: (422, "different-bases"),
    merging.ModuleMismatch: (422, "module-mismatch"),
    merging.NotMergeable: (422, "not-mergeable"),
    merging.ExtrasConflict: (422, "extras-conflict"),
    merging.TokenConflict: (422, "token-conflict"),
    merging.MergeCancelled: (409, "merge-cancelled"),
    recycle.VisionBaseUnavailable: (503, "base-unavailable"),
    recycle.VisionBaseUnsupported: (503, "base-unsupported"),
    recycle.TextBaseUnsupported: (503, "base-unsupported"),
    recycle.SourceUnusable: (422, "source-unusable"),
    recycle.HeadMissing: (422, "head-missing"),
    recycle.HeadMismatch: (422, "head-mismatch"),
    recycle.BadImages: (422, "bad-images"),
    recycle.BadTexts: (422, "bad-texts"),
    recycle.BadEpisode: (422, "bad-episode"),
    recycle.BadDistillation: (422, "bad-distillation"),
    recycle.DistillationCancelled: (409, "distillation-cancelled"),
    store.InvalidName: (422, "invalid-name"),
    store.BadReference: (422, "bad-reference"),
    store.UnkeepableText: (422, "unkeepable-text"),
    store.BadCursor: (422, "bad-cursor"),
    store.UnknownReference: (404, "unknown-reference"),
    store.UnknownParent: (409, "source-deleted"),
    store.UnknownJob: (404, "unknown-job"),
    store.UnknownSurrogates: (404, "unknown-surrogates"),
    store.JobStalled: (500, "worker-died"),
    store.JobNotRunning: (409, "job-not-running"),
    store.JobTakenOver: (409, "job-taken-over"),
    store.WorkerLost: (500, "worker-died"),
    store.KeyReused: (422, "idempotency-key-reused"),
    store.KeyInUse: (409, "idempotency-key-in-use"),
    job_errors.JobTimeout: (504, "job-timeout"),
    job_errors.JobMemory: (507, "job-memory"),
    job_errors.ProcessDied: (500, "worker-died"),
    files.MissingBlob: (422, "missing-blob"),
    files.LostBlob: (500, "lost-file"),
    files.DigestMismatch: (422, "digest-mismatch"),
    files.DamagedBlob: (500, "damaged-blob"),
    files.UnknownUpload: (404, "unknown-upload"),
    files.UploadConflict: (409, "upload-conflict"),
    files.UploadBusy: (423, "upload-busy"),
    files.UploadTooLong: (413, "body-too-large"),
    files.ObjectStoreUnavailable: (503, "object-store-unavailable"),
    files.ObjectStoreDenied: (503, "object-store-denied"),
    store.BackupRefused: (409, "backup-refused"),
    store.BackupFailed: (500, "backup-failed"),
    store.VersionInUse: (409, "version-in-use"),
    store.UnknownKey: (404, "unknown-key"),
    store.QuotaExceeded: (403, "quota-exceeded"),
    store.JobQuotaExceeded: (429, "job-quota-exceeded"),
    files.UnknownTransfer: (404, "unknown-transfer"),
    store.RepositoryMoved: (409, "repository-moved"),
    store.StorageFull: (507, "storage-full"),
    store.StorageBusy: (503, "storage-busy"),
    store.LostRace: (503, "storage-busy"),
    store.StorageUnavailable: (503, "storage-unavailable"),
    store.StorageDamaged: (500, "storage-damaged"),
    store.SchemaNewer: (503, "schema-mismatch"),
    store.UnsupportedDatabase: (500, "unsupported-database"),
    serving.BaseUnavailable: (503, "base-unavailable"),
    serving.BaseUnsupported: (503, "base-unsupported"),
    serving.AdapterNotServable: (422, "not-servable"),
    serving.AdapterModuleMissing: (422, "unknown-module"),
    serving.AdapterShapeMismatch: (422, "shape-mismatch"),
    serving.NoEffect: (422, "no-effect"),
    serving.AdapterGone: (404, "version-deleted"),
    serving.AdapterLoadFailed: (500, "adapter-load-failed"),
    serving.SetTooLarge: (422, "set-too-large"),
    serving.PinsTooLarge: (409, "pins-too-large"),
    serving.PoolBusy: (503, "pool-busy"),
    serving.NotResident: (404, "not-resident"),
    serving.EmptyPrompt: (422, "empty-prompt"),
    serving.TokenOutOfRange: (422, "token-out-of-range"),
    serving.PromptTooLong: (422, "prompt-too-long"),
    serving.InvalidSampling: (422, "invalid-sampling"),
    serving.ConstraintUnsupported: (422, "unsupported-constraint"),
    serving.ConstraintBroken: (422, "constraint-broken"),
    serving.EnsembleEmpty: (422, "ensemble-empty"),
    serving.EnsembleWeights: (422, "bad-weights"),
    serving.EnsembleTooLarge: (422, "ensemble-too-large"),
    serving.NonFiniteLogits: (422, "non-finite-logits"),
    serving.QueueFull: (429, "queue-full"),
    serving.CallerQueueFull: (429, "caller-queue-full"),
    serving.DeadlineExceeded: (504, "deadline-exceeded"),
    serving.EngineClosed: (503, "engine-closed"),
    serving.NotOnServers: (422, "not-on-servers"),
    serving.NoServer: (503, "no-server"),
    serving.ServerLost: (502, "server-lost"),
    serving.ServerRefused: (502, "server-refused"),
    serving.StepFailed: (500, "step-failed"),
}

ROOTS = (deltas.DeltaError, merging.MergeError, store.StoreError, serving.ServingError, job_errors.JobError)

# Fields that are no extras: paths and URLs of this machine are for the operator; the sentence says what is missing.
PRIVATE = frozenset({"place", "url", "searched", "missing", "folder"})

DISK_FULL = (507, "storage-full", "The disk is full; nothing of this request was stored.")
BROKEN = (500, "internal-error", "Something broke inside the service; its log says what.")


def row_of(error: BaseException) -> Row | None:
    """The table's row for this error, by its nearest listed class."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return None


def describe(error: BaseException) -> tuple[int, str, str, dict[str, Any]]:
    """(status, slug, sentence, extras) of any exception; foreign ones become a 500 that gives nothing away."""
    if isinstance(error, Refusal):
        return error.status, error.slug, error.detail, error.extras
    if isinstance(error, BodyTooLarge):
        return 413, "body-too-large", str(error.detail), {"limit_bytes": error.limit_bytes}
    row = row_of(error)
    if isinstance(error, store.StorageFull) or (row is None and is_disk_full(error)):
        return (*DISK_FULL, {})
    if row is not None:
        return (*row, sentence(str(error)), extras_of(error))
    return (*BROKEN, {})


def as_problem(error: BaseException) -> dict[str, Any]:
    """The problem JSON of any exception, as kept with a failed job."""
    return problem(*describe(error))


def extras_of(error: BaseException) -> dict[str, Any]:
    """The error's public fields, for programs."""
    return {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("_") and name not in PRIVATE and value is not None
    }


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one that caused it, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if isinstance(error, OperationalError) and "disk is full" in str(error.orig):
            return True
        error = error.__cause__ or error.__context__
    return False


def sentence(text: str) -> str:
    """The text with a full stop and, unless it begins with the name of a thing (lora_alpha), a capital letter."""
    text = text.strip()
    first = text.partition(" ")[0]
    begin = text[:1].upper() if first.isalpha() else text[:1]
    return begin + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")
