"""The prototype classifier and the divergence, by hand."""

import math

import pytest
import torch

from merging.recycle.errors import BadEpisode
from merging.recycle.evaluate import few_shot_accuracy, summary
from merging.recycle.prototypes import class_log_probabilities, divergence, prototypes


def test_prototypes_are_class_means() -> None:
    support = torch.tensor([[0.0, 0.0], [4.0, 2.0], [2.0, 4.0]])
    assert prototypes(support, torch.tensor([1, 0, 1]), 2).tolist() == [[4, 2], [1, 2]]


def test_distances_by_hand() -> None:
    """A query 3 and 5 away: Euclidean e⁻³ : e⁻⁵, squared e⁻⁹ : e⁻²⁵, at temperature 2 half of it."""
    query, centres = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    for distance, temperature, gap in (("euclidean", 1.0, 2.0), ("squared", 1.0, 16.0), ("euclidean", 2.0, 1.0)):
        found = class_log_probabilities(query, centres, distance, temperature)  # type: ignore[arg-type]
        assert float(found[0, 0] - found[0, 1]) == pytest.approx(gap, abs=1e-5)
        assert float(found.exp().sum()) == pytest.approx(1)


def test_divergence_by_hand() -> None:
    """KL((¾, ¼) ‖ (½, ½)) = ¾ ln 1.5 + ¼ ln ½; the other way ½ ln ⅔ + ½ ln 2."""
    student, teacher = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(divergence(student, teacher)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    other = float(divergence(student, teacher, "teacher_student"))
    assert other == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


def test_a_query_on_its_prototype_has_a_gradient() -> None:
    queries = torch.tensor([[1.0, 1.0]], requires_grad=True)
    loss = class_log_probabilities(queries, torch.tensor([[1.0, 1.0], [0.0, 0.0]])).sum()
    (slope,) = torch.autograd.grad(loss, queries)
    assert bool(torch.isfinite(slope).all())


def test_a_class_without_support_is_refused() -> None:
    with pytest.raises(BadEpisode, match=r"found \[2, 0\]"):
        prototypes(torch.zeros(2, 3), torch.tensor([0, 0]), 2)


def test_separated_classes_are_always_right_and_too_few_are_refused() -> None:
    labels = torch.arange(6).repeat_interleave(20)
    found = few_shot_accuracy(labels[:, None].float(), labels, episodes=5, rng=torch.Generator().manual_seed(0))
    assert found == (1.0, 0.0, 5)
    with pytest.raises(BadEpisode, match="at least 5 classes with 21 images"):
        few_shot_accuracy(labels[:, None].float(), labels, shots=6, rng=torch.Generator())


def test_the_interval_by_hand() -> None:
    """½ and 1: s = √(2 · ¼² / 1) = 0.35355, so 1.96 · s / √2 = 0.49."""
    found = summary([0.5, 1.0])
    assert found.mean == 0.75
    assert found.interval == pytest.approx(0.49)
