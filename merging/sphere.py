"""Means on the sphere, of updates that are never formed: everything goes through their Gram matrix.

An update is a vector ΔW_t in a Euclidean space; all that spherical interpolation needs of T of them are the inner
products G [T, T], and its result is a combination Σ c_t ΔW_t. Functions return the coefficients c [T]. float64.
"""

import torch
from torch import Tensor

PARALLEL = 1e-9  # sine below which two directions count as one, and interpolation is linear
CANCELLED = 1e-7  # length below which a mean of unit vectors is rounding: a Gram matrix knows lengths to 1e-8


def slerp_coefficients(gram: Tensor, t: float) -> Tensor:
    """sin((1−t)Ω)/sinΩ and sin(tΩ)/sinΩ for two vectors at angle Ω (Shoemake 1985), or for many such pairs at once.

    `gram` [2, 2, …] gives coefficients [2, …]. Between parallel and opposite vectors they are linear, 1−t and t.
    """
    norms = torch.stack([gram[0, 0], gram[1, 1]]).clamp_min(1e-300).sqrt()
    cosine = (gram[0, 1] / (norms[0] * norms[1])).clamp(-1, 1)
    omega = torch.acos(cosine)
    sine = torch.sin(omega)
    # Near −1 the last digit of a cosine is an angle of 1e-8, by whose sine everything would be divided.
    parallel = sine < torch.where(cosine < 0, CANCELLED, PARALLEL)
    safe = torch.where(parallel, 1.0, sine)
    first = torch.where(parallel, 1 - t, torch.sin((1 - t) * omega) / safe)
    second = torch.where(parallel, t, torch.sin(t * omega) / safe)
    return torch.stack([first, second])


def mean_direction_coefficients(gram: Tensor, shares: Tensor) -> Tensor:
    """The weighted mean of the vectors' directions, at the weighted mean of their norms; `shares` [T] sum to 1.

    Directions that cancel have no mean: the coefficients are then the shares themselves.
    """
    norms = gram.diagonal().clamp_min(0).sqrt()
    units = torch.where(norms > 0, shares / norms.clamp_min(1e-300), 0.0)
    length = (units @ gram @ units).clamp_min(0).sqrt()
    return units / length * (shares @ norms) if float(length) > CANCELLED else shares


def karcher_coefficients(gram: Tensor, shares: Tensor, steps: int, tolerance: float) -> Tensor:
    """The weighted Karcher mean of the vectors' directions, at the weighted mean of their norms.

    Starts at the normalised weighted mean and follows the mean of the logarithm maps until it vanishes. `shares` [T]
    are positive and sum to 1. Vectors of norm zero take no part. One that is opposite to the mean does not pull at it,
    since no way to it is the shortest. Directions that cancel have no mean: the coefficients are then the shares.
    """
    norms = gram.diagonal().clamp_min(0).sqrt()
    live = norms > 0
    units = torch.where(live, 1 / norms.clamp_min(1e-300), 0.0)  # c = units ∘ e_t gives direction t
    shares = torch.where(live, shares, 0.0)
    shares = shares / shares.sum().clamp_min(1e-300)
    point = shares * units
    length = (point @ gram @ point).clamp_min(0).sqrt()
    if float(length) <= CANCELLED:
        return shares
    point = point / length
    for _ in range(steps):
        cosine = ((gram @ point) * units).clamp(-1, 1)
        angle = torch.acos(cosine)
        # log_x(y) = Ω/sinΩ (y − cosΩ x); the factor tends to 1 as Ω tends to 0.
        sine = torch.sin(angle)
        factor = torch.where(angle < PARALLEL, torch.ones_like(angle), angle / sine.clamp_min(PARALLEL))
        factor = torch.where((cosine < 0) & (sine < CANCELLED), 0.0, factor)
        tangent = shares * factor * units - (shares * factor * cosine).sum() * point
        length = (tangent @ gram @ tangent).clamp_min(0).sqrt()
        if float(length) < tolerance:
            break
        point = _unit(torch.cos(length) * point + torch.sin(length) / length * tangent, gram)
    return point * (shares * norms).sum()


def _unit(coefficients: Tensor, gram: Tensor) -> Tensor:
    """The same direction at norm 1; unchanged where the combination cancels to nothing."""
    length = (coefficients @ gram @ coefficients).clamp_min(0).sqrt()
    return coefficients / length if float(length) > 1e-150 else coefficients
