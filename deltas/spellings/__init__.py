"""The spellings of weights that come without adapter_config.json, and which one a file is in.

Stable Diffusion's trainers put everything into the safetensors file. `written_config` writes the config that PEFT would
have kept for it, with ranks from the shapes and alphas from the file's own tensors; its field `spolia_spelling` says
which module each path of the file means. The weights stay as they are: `Respelling` translates their keys on reading.
"""

from deltas.spellings.config import respelt_config, written_config
from deltas.spellings.respelling import Respelling

__all__ = ["Respelling", "respelt_config", "written_config"]
