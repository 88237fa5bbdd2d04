"""Calibration worked by hand, and the comparison of members that can be told apart."""

import math

import pytest
import torch

from benchmarks.ensemble_quality import calibration_error, compare, scores

TRUTH = torch.tensor([0, 1, 1, 0])


def test_calibration_error_worked_by_hand() -> None:
    # bin (0.8, 0.9]: confidences 0.9 and 0.85, one right: |1 - 1.75|; bin (0.6, 0.7]: 0.7, right: |1 - 0.7|;
    # bin (0.9, 1]: 1, wrong: |0 - 1|
    found = torch.tensor([[0.9, 0.1], [0.85, 0.15], [0.3, 0.7], [0.0, 1.0]], dtype=torch.float64)
    assert calibration_error(found, TRUTH) == pytest.approx((0.75 + 0.3 + 1) / 4)


def test_scores_of_certain_and_right_answers() -> None:
    found = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert scores(found, TRUTH) == {"accuracy": 1, "nll": 0, "ece": 0}


def test_an_ensemble_of_opposites_is_undecided() -> None:
    one = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
    found = compare(torch.stack([one, -one]), one, TRUTH)
    assert [member["accuracy"] for member in found["members"]] == [1, 0]
    assert found["single"]["accuracy"] == 0.5
    assert found["merged"] == found["members"][0]
    assert found["ensemble"]["nll"] == pytest.approx(math.log(2))
