"""LoRA-LEGO: cluster the ranks of all sources, rebuild an adapter from the centroids (arXiv 2409.16167, ICLR 2025).

The pieces are minimal semantic units s_j = [a_j, b_j]: row j of A beside column j of B. Pool all pieces of all sources,
k-means them into `rank` groups by squared Euclidean distance (Eq. 2), and take each centroid as one rank of the
result. Two corrections follow, each a switch:

* parameter reweighting: averaging pieces that disagree shrinks them, so a centroid μ_c grows by the mean norm of its
  members over its own norm;
* output reweighting: the result is scaled by √(r_ref / rank), since the variance of the output grows with the ranks.

Known for sure are the pool, the objective and that both corrections exist; their formulas, the infinity norm
and the raw features come from two independent reimplementations that agree with each other (the paper's own sections
could not be read). Ours: the scale is folded by its root on both sides; `r_ref` is the mean rank where sources differ;
weights other than 1 multiply the pieces (√|w| on both sides, the sign on b); `canonicalise` (off by default) makes
pieces comparable that differ only by (a, b) → (c·a, b/c) or by both signs; a seed and an order-free start.

With one source and rank below its own, LEGO compresses that adapter (the paper's pruning use). It cannot come closer to
the update than `sum`, the truncated SVD, which is the optimum, and usually stays far behind: pieces are averaged, not
rotated. It keeps what is repeated among the ranks as they were trained.
"""

import warnings
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from deltas.factors import Factors, balanced
from merging.method import Merged, merge_method

EPS = 1e-12


@merge_method("lego", space="factors", ranks="chosen", source="LoRA-LEGO, arXiv 2409.16167 (ICLR 2025), Eq. 2")
def lego(
    sources: list[Factors],
    weights: list[float],
    rank: int,
    rng: torch.Generator,
    *,
    param_reweight: Annotated[bool, Field(description="scale each centroid by its members' mean norm")] = True,
    norm: Annotated[Literal["inf", "2"], Field(description="the norm that param_reweight uses")] = "inf",
    output_reweight: Annotated[bool, Field(description="scale the result by sqrt(r_ref / rank)")] = True,
    r_ref: Annotated[
        Literal["mean", "sum"] | Annotated[float, Field(gt=0)],
        Field(description="reference rank of output_reweight: the sources' mean, their sum, or a number"),
    ] = "mean",
    feature_norm: Annotated[
        Literal["raw", "unit"], Field(description="cluster [a, b] as it is, or with a and b each at norm 1")
    ] = "raw",
    canonicalise: Annotated[bool, Field(description="first balance norms and fix signs of every rank (ours)")] = False,
    n_init: Annotated[int, Field(ge=1, le=100, description="k-means starts; the best is kept")] = 10,
) -> Merged:
    """LoRA-LEGO: k-means over the ranks of all sources; each cluster becomes one rank of the result."""
    pieces = [_weighted(balanced(f) if canonicalise else f, w) for f, w in zip(sources, weights, strict=True)]
    split = sources[0].in_features
    pool = torch.cat([torch.cat([p.A, p.B.T], dim=1) for p in pieces]).double()  # [Σr, in + out]
    labels, inertia = _cluster(_features(pool, split, feature_norm), rank, n_init, rng)
    origin = torch.repeat_interleave(torch.arange(len(sources)), torch.tensor([f.rank for f in sources]))

    _, labels = torch.unique(labels, return_inverse=True)  # fewer than `rank` when fewer pieces are distinct
    sizes = torch.bincount(labels)
    centroids = _means(pool, labels, sizes)
    factors = [1.0] * len(sizes)
    if param_reweight:
        order = float("inf") if norm == "inf" else 2.0
        wanted = _means(torch.linalg.vector_norm(pool, ord=order, dim=1, keepdim=True), labels, sizes)[:, 0]
        grow = wanted / torch.linalg.vector_norm(centroids, ord=order, dim=1).clamp_min(EPS)
        # A centroid of cancelling members has no direction to restore: growing rounding noise would invent one.
        grow = torch.where(torch.linalg.vector_norm(centroids, ord=order, dim=1) > EPS * wanted, grow, 1.0)
        centroids = centroids * grow[:, None]
        factors = grow.tolist()
    reference = _reference_rank(r_ref, [f.rank for f in sources])
    output_scale = (reference / len(sizes)) ** 0.5 if output_reweight else 1.0
    by_source = torch.bincount(labels * len(sources) + origin, minlength=len(sizes) * len(sources))
    details = {
        "clusters": len(sizes),
        "cluster_sizes": sizes.tolist(),
        "members_by_source": by_source.view(len(sizes), len(sources)).tolist(),
        "reweighting_factors": factors,
        "inertia": inertia,
        "inertia_share": inertia / max(float((pool - pool.mean(dim=0)).square().sum()), EPS),
        "r_ref": reference,
        "output_scale": output_scale,
    }
    root = output_scale**0.5
    return Merged(Factors(root * centroids[:, :split], root * centroids[:, split:].T.contiguous()), details)


def _weighted(factors: Factors, weight: float) -> Factors:
    root = abs(weight) ** 0.5
    return Factors(factors.A * root, factors.B * (root if weight >= 0 else -root))


def _means(rows: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """The mean row of each cluster, [clusters, columns]."""
    return rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, labels, rows) / sizes[:, None]


def _features(pool: Tensor, split: int, feature_norm: str) -> Tensor:
    if feature_norm == "raw":
        return pool
    halves = (pool[:, :split], pool[:, split:])
    return torch.cat([h / torch.linalg.vector_norm(h, dim=1, keepdim=True).clamp_min(EPS) for h in halves], dim=1)


def _cluster(features: Tensor, k: int, n_init: int, rng: torch.Generator) -> tuple[Tensor, float]:
    """k-means labels [n] and inertia. The same pieces in another order give the same clusters.

    Distances depend on inner products alone, so k-means runs on n coordinates (a root of the Gram matrix) rather than
    on in + out. Rows are sorted by content first, so that the seeded start does not depend on the order of sources.
    """
    n = features.shape[0]
    if k >= n:  # every piece is its own cluster, duplicates too
        return torch.arange(n), 0.0
    rows = features.numpy()
    order = sorted(range(n), key=lambda i: rows[i].tobytes())
    ordered = features[order]
    gram = ordered @ ordered.T
    values, vectors = torch.linalg.eigh(gram)
    points = (vectors * values.clamp_min(0).sqrt()).numpy()
    starts = iter(_starts(gram.numpy(), k, n_init, int(torch.randint(2**31 - 1, (1,), generator=rng))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct pieces than k: fewer clusters, reported
        # Each start calls `init` once; scikit-learn moves the points to their mean before.
        found = KMeans(k, n_init=n_init, init=lambda moved, *_, **__: moved[next(starts)], random_state=0).fit(points)
    labels = np.empty(n, dtype=np.int64)
    labels[order] = found.labels_
    return torch.from_numpy(labels), float(found.inertia_)


def _starts(gram: NDArray[np.float64], k: int, n_init: int, seed: int) -> NDArray[np.intp]:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, §5): the points [n_init, k] that the starts begin at, by the
    points' inner products [n, n].

    As scikit-learn's own, on distances that are computed once and for all starts at once: its checks of arguments at
    every point took three quarters of the clustering, and held the interpreter's lock from the other modules.
    """
    rng = np.random.default_rng(seed)
    squares = gram.diagonal()
    apart = np.maximum(squares[:, None] + squares - 2 * gram, 0)  # [n, n]
    chosen = rng.integers(len(gram), size=(n_init, 1))
    nearest = apart[chosen[:, 0]]  # [n_init, n]: each point's squared distance to the chosen
    for _ in range(k - 1):
        cumulated = nearest.cumsum(axis=1)
        drawn = rng.random((n_init, 2 + int(np.log(k)))) * cumulated[:, -1:]
        candidates = (cumulated[:, None] <= drawn[:, :, None]).sum(axis=2).clip(max=len(gram) - 1)
        narrowed = np.minimum(nearest[:, None], apart[candidates])  # [n_init, candidates, n]
        best = narrowed.sum(axis=2).argmin(axis=1)
        rows = np.arange(n_init)
        nearest = narrowed[rows, best]
        chosen = np.hstack([chosen, candidates[rows, best][:, None]])
    return chosen


def _reference_rank(r_ref: Any, ranks: list[int]) -> float:
    if r_ref == "sum":
        return float(sum(ranks))
    return sum(ranks) / len(ranks) if r_ref == "mean" else float(r_ref)
