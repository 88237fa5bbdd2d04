"""The truth meter: what a merge kept and what it lost, per module and in all.

Everything is measured against the exact weighted sum T = Σ w_t ΔW_t, on the small cores in the joint bases, in float64,
from the factors as they are stored (after rounding to the result's dtype). With C the result's core:

* relative_error      ‖T − ΔW‖ / ‖T‖
* energy_at_rank      best share of ‖T‖² that an update of the result's rank can keep (Eckart and Young 1936)
* rank_95, rank_99    smallest rank that keeps 95 % and 99 % of ‖T‖²
* sources[t]          cosine ⟨ΔW_t, ΔW⟩ / ‖ΔW_t‖‖ΔW‖; projection ⟨ΔW_t, ΔW⟩ / ‖ΔW_t‖² (1: the result acts on the
                      source's own direction as the source did); subspace: share of ‖ΔW_t‖² inside the result's row
                      and column spaces; removal ‖w_t ΔW_t‖ / ‖T‖, by how much T would change without the source;
                      w_t is the module's own weight where weights vary over the model;
                      conversion_error: the relative error of the factors that a source of full rank was cut to
* interference[i][j]  cosine of two sources, and the sign agreement of their cores: Σ|m_i m_j| over entries of equal
                      sign, divided by the sum over all entries
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deltas.factors import Factors
from deltas.joint import Joint

# Per-module pair matrices are left out above this many sources: they would outweigh the adapter itself.
PAIRS_PER_MODULE = 16
SLICE = 1 << 16  # entries of every core that are looked at together


def measure_module(
    joint: Joint, weights: Sequence[float], target: Tensor, target_spectrum: Tensor, result: Factors
) -> dict[str, Any]:
    """The figures of one module. `joint`: the sources' bases and cores; `target`: T's core; then its singular values.

    Keys beginning with "_" are sums that `summarise` needs; `published` drops them.
    """
    projection = joint.project(result)
    core, outside = projection.core, projection.outside_energy
    energy = target_spectrum.square()
    total = float(energy.sum())
    error = float((target - core).square().sum()) + outside
    result_sq = float(core.square().sum()) + outside
    gram, agree, weight = pair_sums(joint)
    norm_sq = gram.diagonal()
    overlap = [float(((projection.left.T @ s.left) * (projection.right.T @ s.right)).sum()) for s in joint.sources]
    left, right = projection.ranges()
    inside = [float(((left.T @ s.left) @ (right.T @ s.right).T).square().sum()) for s in joint.sources]
    return {
        "rank": result.rank,
        "relative_error": _ratio(error, total) ** 0.5 if total else None,
        "energy_at_rank": _ratio(float(energy[: result.rank].sum()), total) if total else None,
        "rank_95": _rank_for(energy, 0.95),
        "rank_99": _rank_for(energy, 0.99),
        "norm": result_sq**0.5,
        "target_norm": total**0.5,
        "sources": [
            {
                "norm": n**0.5,
                "cosine": _ratio(o, (n * result_sq) ** 0.5),
                "projection": _ratio(o, n),
                "subspace": min(1.0, _ratio(i, n)),
                "removal": abs(w) * _ratio(n, total) ** 0.5,
            }
            for n, o, i, w in zip(norm_sq.tolist(), overlap, inside, weights, strict=True)
        ],
        "_error": error,
        "_target": total,
        "_kept": float(energy[: result.rank].sum()),
        "_result": result_sq,
        "_overlap": overlap,
        "_inside": inside,
        "_pairs": _packed(torch.stack([gram, agree, weight])),
        "_weighted": [w * w * n for w, n in zip(weights, norm_sq.tolist(), strict=True)],
    }


def published(module: dict[str, Any]) -> dict[str, Any]:
    """One module's figures as they are shown: without the sums, with its pair matrices where they are few."""
    shown = {k: v for k, v in module.items() if not k.startswith("_")}
    count = len(module["sources"])
    if 1 < count <= PAIRS_PER_MODULE:
        gram, agree, weight = _unpacked(module["_pairs"], count).tolist()
        shown["cosine"] = cosines(gram)
        shown["sign_agreement"] = agreements(agree, weight)
    return shown


def summarise(
    modules: Mapping[str, dict[str, Any]],
    members: Mapping[str, Sequence[int]],
    refs: Sequence[str],
) -> dict[str, Any]:
    """The figures in all: sums over modules of numerators and denominators, so that large modules weigh more.

    `members[name]`: which sources module `name` has, as indices into `refs`.
    """
    count = len(refs)
    pairs = torch.zeros(3, count, count, dtype=torch.float64)
    overlap, inside, weighted = [0.0] * count, [0.0] * count, [0.0] * count
    shared = [0] * count
    whole, cut = [0.0] * count, [0.0] * count
    for name, module in modules.items():
        for a, i in enumerate(members[name]):
            overlap[i] += module["_overlap"][a]
            inside[i] += module["_inside"][a]
            weighted[i] += module["_weighted"][a]
            shared[i] += 1
            figures = module["sources"][a]
            lost = figures.get("conversion_error", 0.0) ** 2
            whole[i] += figures["norm"] ** 2 / (1 - lost)
            cut[i] += figures["norm"] ** 2 * lost / (1 - lost)
        index = torch.tensor(members[name])
        pairs[:, index[:, None], index] += _unpacked(module["_pairs"], len(index))
    gram, agree, weight = pairs.tolist()
    error, target, kept, result = (
        sum(m[key] for m in modules.values()) for key in ("_error", "_target", "_kept", "_result")
    )
    return {
        "relative_error": _ratio(error, target) ** 0.5 if target else None,
        "energy_at_rank": _ratio(kept, target) if target else None,
        "rank_95": _spread([m["rank_95"] for m in modules.values()]),
        "rank_99": _spread([m["rank_99"] for m in modules.values()]),
        "rank": _spread([m["rank"] for m in modules.values()]),
        "norm": result**0.5,
        "target_norm": target**0.5,
        "sources": [
            {
                "ref": refs[i],
                "modules": shared[i],
                "norm": gram[i][i] ** 0.5,
                "cosine": _ratio(overlap[i], (gram[i][i] * result) ** 0.5),
                "projection": _ratio(overlap[i], gram[i][i]),
                "subspace": min(1.0, _ratio(inside[i], gram[i][i])),
                "removal": _ratio(weighted[i], target) ** 0.5,
                **({"conversion_error": _ratio(cut[i], whole[i]) ** 0.5} if cut[i] else {}),
            }
            for i in range(count)
        ],
        "interference": {
            "refs": list(refs),
            "cosine": cosines(gram),
            "sign_agreement": agreements(agree, weight),
        },
    }


def _packed(pairs: Tensor) -> str:
    """[3, T, T] float64 as text: a third of its size as JSON numbers, and without rounding."""
    return base64.b64encode(pairs.contiguous().view(torch.uint8).numpy().tobytes()).decode()


def _unpacked(text: str, count: int) -> Tensor:
    raw = bytearray(base64.b64decode(text))
    return torch.frombuffer(raw, dtype=torch.float64).reshape(3, count, count)


def pair_sums(joint: Joint) -> tuple[Tensor, Tensor, Tensor]:
    """For each pair of cores: their inner product, Σ|m_i m_j| where signs agree, and over all entries. [T, T] each."""
    gram, weight = torch.zeros(2, len(joint.sources), len(joint.sources), dtype=torch.float64)
    for part in joint.slices(SLICE):
        gram += part @ part.T
        magnitude = part.abs()
        weight += magnitude @ magnitude.T
    # |m_i m_j| counts where the product is positive: (|m_i||m_j| + m_i m_j) / 2 is that, summed.
    return gram, (weight + gram) / 2, weight


def _rank_for(energy: Tensor, share: float) -> int:
    """The smallest rank whose leading singular values keep `share` of the energy; 0 for a zero update."""
    total = float(energy.sum())
    if total == 0:
        return 0
    return int((energy.cumsum(0) < share * total * (1 - 1e-12)).sum()) + 1


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def cosines(gram: list[list[float]]) -> list[list[float]]:
    return [[_ratio(gram[i][j], (gram[i][i] * gram[j][j]) ** 0.5) for j in range(len(gram))] for i in range(len(gram))]


def agreements(agree: list[list[float]], weight: list[list[float]]) -> list[list[float | None]]:
    """None where two sources share no module or no entry: there is nothing to agree on."""
    return [[a / w if w > 0 else None for a, w in zip(*rows, strict=True)] for rows in zip(agree, weight, strict=True)]


def _spread(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}
