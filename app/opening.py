"""The base model and the engine that generates with it, as the settings choose."""

from pathlib import Path

import torch

from app.settings import Settings
from app.shelves import Shelves
from deltas.base_folder import read_card
from serving.base_model import BaseInfo, ensure_base, load_base, load_info
from serving.engine import Engine as EmbeddedEngine
from serving.protocol import Engine
from serving.vllm.engine import VllmEngine

BASE_DETAILS = ("origin", "architecture", "parameters", "context_length", "embeddings", "experts")


def open_engine(shelves: Shelves) -> tuple[BaseInfo, Engine]:
    """Find (or make) the base model's folder, make it known to the registry, and start the engine.

    With vLLM servers this process reads the base's tokenizer and card, never its weights.

    Raises:
        BaseUnavailable, BaseUnsupported: the base model cannot be found or served.
    """
    settings = shelves.settings
    torch.set_num_threads(settings.threads)
    folder = ensure_base(settings.base_model, settings.model_folders, settings.prepared_models_dir)
    if settings.engine == "vllm":
        info = load_info(folder)
        register_base(shelves, info, folder)
        return info, open_fleet(shelves, settings, info)
    base = load_base(folder)
    register_base(shelves, base, folder)
    engine = EmbeddedEngine(
        base,
        shelves.adapter_loader(),
        pool_bytes=settings.adapter_pool_bytes,
        prefix_bytes=settings.prefix_cache_bytes,
        max_rows=settings.max_batch_rows,
        max_waiting=settings.max_waiting_requests,
        max_waiting_per_caller=settings.max_waiting_per_caller,
        threads=settings.threads,
    )
    engine.prepare()
    return base, engine.start()


def open_fleet(shelves: Shelves, settings: Settings, base: BaseInfo) -> VllmEngine:
    """The engine that drives the vLLM servers of the settings, started."""
    key = settings.vllm_api_key
    engine = VllmEngine(
        base,
        shelves.adapter_loader(),
        servers=settings.vllm_urls,
        folder=settings.vllm_folder or settings.data_dir / "vllm",
        seen_as=settings.vllm_folder_seen_as,
        max_rank=settings.vllm_max_lora_rank,
        slots=settings.vllm_adapters_per_server,
        max_waiting=settings.max_waiting_requests,
        max_waiting_per_caller=settings.max_waiting_per_caller,
        factor=settings.vllm_spill_factor,
        quiet=settings.vllm_quiet_requests,
        folder_bytes=settings.vllm_folder_bytes,
        zeros=settings.vllm_base_as_zeros,
        patience_s=settings.vllm_patience_s,
        api_key=None if key is None else key.get_secret_value(),
    )
    return engine.start()


def register_base(shelves: Shelves, base: BaseInfo, folder: Path) -> None:
    """Make the base model known to the registry, if what it knows is not this."""
    card = read_card(folder)
    details: dict[str, object] = {key: card[key] for key in BASE_DETAILS if key in card}
    details["folder"] = str(folder.resolve())
    known = shelves.registry.base(base.name)
    if known is None or known.fingerprint != base.fingerprint or known.details != details:
        shelves.registry.upsert_base(base.name, base.fingerprint, base.modules, details)
