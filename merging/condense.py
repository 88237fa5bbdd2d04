"""The sources of one module, turned into bases of what they span: far smaller, and every figure stays.

With B = [B_1 … B_T] = Q_B R_B and Aᵀ = [A_1; …; A_T]ᵀ = Q_A R_A, ΔW_t = Q_B (R_B,t R_A,tᵀ) Q_Aᵀ. Q_B and Q_A have
orthonormal columns, so the factors (R_A,tᵀ, R_B,t) have the same norms, angles, singular values and joint bases as the
sources, in matrices as large as Σr instead of the model's width. Weights, method and rank do not enter: once made,
they answer any question about merging these sources, or some of them.

Kept in float32, so figures are right to about 1e-6. Only what does not depend on the model's own coordinates may be
asked of them: methods on cores, and the exact ones.
"""

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load, save

from deltas.adapter import Adapter, Reading
from deltas.factors import Factors, balanced
from merging.file_cache import FileCache, cache_key
from merging.method import MODULE_NEEDS
from merging.plan import Plan

KIND = "condensed:1"  # changes with the layout of what is kept


class CondensedSources:
    """The factors of adapters (identity of their content → adapter), module by module, condensed and kept in `files`.

    Where condensing would save nothing (Σr reaches the module's own width), the factors are read as they are.
    """

    def __init__(self, adapters: Mapping[str, Adapter], files: FileCache) -> None:
        self._adapters = adapters
        self._files = files

    def read(self, module: str, wanted: Sequence[str]) -> list[Reading]:
        """The module's factors in the adapters `wanted`, all turned by the same bases; float32."""
        members = [identity for identity, adapter in self._adapters.items() if module in adapter.modules]
        infos = [self._adapters[identity].modules[module] for identity in members]
        if sum(info.rank for info in infos) >= min(infos[0].in_features, infos[0].out_features):
            return [self._adapters[identity].reading(module) for identity in wanted]
        key = cache_key(KIND, [module, *members])
        kept = self._files.get(key)
        if kept is None:
            readings = [self._adapters[identity].reading(module) for identity in members]
            stack = condense([reading.factors for reading in readings])
            errors = torch.tensor([reading.relative_error for reading in readings], dtype=torch.float64)
            self._files.put(key, save({"A": stack.A, "B": stack.B, "errors": errors}))
        else:
            tensors = load(kept)
            stack, errors = Factors(tensors["A"], tensors["B"]), tensors["errors"]
        ranks = [info.rank for info in infos]
        parts = zip(torch.split(stack.A, ranks), torch.split(stack.B, ranks, dim=1), errors.tolist(), strict=True)
        found = {name: Reading(Factors(A, B), error) for name, (A, B, error) in zip(members, parts, strict=True)}
        return [found[identity] for identity in wanted]


def condense(sources: Sequence[Factors]) -> Factors:
    """The sources' factors stacked and turned: A [Σr, a], B [b, Σr] with a = min(in, Σr), b = min(out, Σr); float32.

    Every rank is balanced first, so that rounding to float32 is relative to each rank's own size.
    """
    A = torch.cat([f.A for f in sources]).double()
    B = torch.cat([f.B.T for f in sources]).double().T  # its columns lie together in memory, as LAPACK wants them
    even = balanced(Factors(A, B))
    R_A = torch.linalg.qr(even.A.T, mode="r").R
    R_B = torch.linalg.qr(even.B, mode="r").R
    return Factors(R_A.T.float().contiguous(), R_B.float().contiguous())


def can_condense(plan: Plan) -> bool:
    """Whether the plan's method sees nothing of the model's own coordinates."""
    turned = plan.space == "core" or (plan.method.exact and plan.space == plan.method.space)
    return turned and set(plan.method.needs_in(plan.space)) <= MODULE_NEEDS
