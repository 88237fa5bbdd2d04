"""All rooms, opened: what the API's handlers are given to work with."""

from dataclasses import dataclass, field

from app.engine_jobs import EngineJobs
from app.exploring import Explorer
from app.exporting import Exporter
from app.hub.trees import Trees
from app.identity.keyring import Keyring
from app.job_watch import JobWatch
from app.jobs import JobEngine
from app.mailbox import Mailbox
from app.observing.patience import Patience
from app.predictor import Predictor
from app.prompt_log import PromptLog
from app.prompts import Prompts
from app.settings import Settings
from app.shelves import Shelves
from serving.base_model import BaseInfo
from serving.protocol import Engine
from store.jobs import JobTable
from store.registry import Registry


@dataclass(frozen=True, slots=True)
class House:
    """All that a request may need."""

    shelves: Shelves
    base: BaseInfo
    engine: Engine
    mailbox: Mailbox
    prompts: Prompts
    job_engine: JobEngine
    explorer: Explorer
    engine_jobs: EngineJobs
    prompt_log: PromptLog
    exporter: Exporter
    job_watch: JobWatch
    keyring: Keyring
    trees: Trees
    predictor: Predictor
    patience: Patience = field(default_factory=lambda: Patience(2.0))

    @property
    def settings(self) -> Settings:
        """The settings that the house was built with."""
        return self.shelves.settings

    @property
    def registry(self) -> Registry:
        """Adapters and their versions."""
        return self.shelves.registry

    @property
    def jobs(self) -> JobTable:
        """Long work and its state."""
        return self.shelves.jobs
