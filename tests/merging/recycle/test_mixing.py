"""Blended queries: inputs and what is asked for, by hand and by law."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.recycle.mixing import mixed, wanted
from merging.recycle.randomness import generator
from merging.recycle.surrogates import Task


def task(queries: int, ways: int, *, taught: bool) -> Task:
    """Support of ones, queries 0, 1, 2, … everywhere; labels in turn."""
    values = torch.cat([torch.ones(ways), torch.arange(float(queries))])
    inputs = values[:, None, None, None].expand(-1, 3, 4, 4)
    labels = torch.cat([torch.arange(ways), torch.arange(queries) % ways])
    teacher = torch.randn(queries, ways, generator=generator(0, "teacher")).log_softmax(1) if taught else None
    return Task(inputs, torch.arange(4).expand(len(values), 4), labels, ways, ways, teacher)


def test_what_is_asked_is_the_teachers_opinion_or_the_label() -> None:
    taught, free = task(4, 3, taught=True), task(4, 3, taught=False)
    assert wanted(taught) is taught.teacher
    assert wanted(free).exp().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


@given(seed=st.integers(0, 2**31), share=st.floats(0.01, 0.5), taught=st.booleans())
def test_targets_are_blended_as_inputs_are(seed: int, share: float, taught: bool) -> None:
    """A query q became (1 − λ) q + λ q′; the very λ and q′ that explain the image explain the target."""
    own, rng = task(5, 3, taught=taught), generator(seed, "mixed")
    asked = wanted(own)
    found, targets = mixed(own, asked, share, rng)
    other = torch.randperm(5, generator=generator(seed, "mixed")).tolist()
    assert torch.equal(found.inputs[:3], own.inputs[:3])
    assert torch.allclose(targets.exp().sum(1), torch.ones(5), atol=1e-5)
    for query, partner in enumerate(other):
        image = found.inputs[3 + query]
        assert float(image.max() - image.min()) == 0
        if partner != query:
            part = (float(image[0, 0, 0]) - query) / (partner - query)
            assert -1e-5 <= part <= share + 1e-5
            blend = (1 - part) * asked[query].exp() + part * asked[partner].exp()
            assert torch.allclose(targets[query].exp(), blend, atol=1e-5)


def test_sequences_are_blended_too() -> None:
    own = task(4, 2, taught=True)
    texts = own._replace(inputs=own.inputs[:, 0])
    found, _ = mixed(texts, wanted(texts), 0.5, generator(0, "mixed"))
    assert found.inputs.shape == (6, 4, 4)
