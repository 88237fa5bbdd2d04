"""Inversion in embedding space: surrogate texts of an adapter's classes, out of the adapter and its words or head.

Our extension of LoRA Recycle (arXiv 2412.02220, eq. 1 and 2) to texts, which have no pixels. From Gaussian noise,
minimise over normalised embeddings Z [N, T, D] (mean 0 and variance 1 of each channel over the vocabulary)

    CE( h(f_ΔW(Z)), Y ) + α · R(Z) + ν · mean ‖Z − nearest(Z)‖² / D

with Adam. R is the form of eq. 2 on what texts are made of: ‖μ(Z)‖₂ + ‖σ²(Z) − 1‖₂ over all tokens of the batch, 0
and 1 being those of the vocabulary. nearest(Z) is the embedding of the nearest real token; no gradient goes through it.

With `tokens="real"` the network hears nearest(Z) at every step and the gradient is applied to Z, as in Wen et al.,
"Hard prompts made easy" (arXiv 2302.03668); what comes out are real tokens that the teacher answers as it should.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from merging.recycle.inversion import Inversion, Losses
from merging.recycle.params import TextInversionParams
from merging.recycle.pruning import kept_count
from merging.recycle.statistics import feature_distance
from merging.recycle.text_base import TextBase
from merging.recycle.text_network import TextNetwork
from merging.recycle.text_source import TextSource


class Vocabulary:
    """The normalised embeddings of all ordinary tokens, and the search for the nearest."""

    def __init__(self, base: TextBase, network: TextNetwork) -> None:
        self.ids = base.ordinary
        table = base.normalised(network.table.cpu())[self.ids]
        self.table = table.to(network.dtype)
        self._halves = self.table.float().square().sum(1) / 2

    def nearest(self, inputs: Tensor) -> Tensor:
        """Of each token [..., D] the place of the nearest in `table`: argmin ‖z − t‖² = argmax z·t − ‖t‖²/2."""
        with torch.no_grad():
            flat = inputs.reshape(-1, inputs.shape[-1]).to(self.table.dtype)
            found = torch.cat(
                [((part @ self.table.T).float() - self._halves).argmax(1) for part in torch.split(flat, 256)]
            )
        return found.reshape(inputs.shape[:-1])

    def rounded(self, inputs: Tensor) -> Tensor:
        """The nearest tokens' own normalised embeddings, in float32."""
        return self.table[self.nearest(inputs)].float()


def invert_texts(
    state: Inversion,
    base: TextBase,
    network: TextNetwork,
    source: TextSource,
    vocabulary: Vocabulary,
    params: TextInversionParams,
    on_step: Callable[[Losses], None] = lambda losses: None,
) -> None:
    """Run `state` to its last step. `on_step` is called after each; what it raises ends the run, and `state` can go on
    later, to the same bytes. Nothing in it is random but its beginning."""
    beginning = source.beginning(network)
    width = base.width
    expected = [(torch.zeros(width), torch.ones(width))]
    while state.step < params.steps:
        own = state.inputs
        near = vocabulary.rounded(own) if params.nearest_weight > 0 or params.tokens == "real" else own.detach()
        heard = own + (near - own).detach() if params.tokens == "real" else own
        answers = source.answers(source.hear(network, base.embeddings(heard), beginning))
        entropy = F.cross_entropy(answers, state.labels)
        flat = own.reshape(-1, width)
        features = feature_distance([(flat.mean(0), flat.var(0, correction=0))], expected)
        distance = (own - near).square().mean()
        state.descend(entropy + params.feature_weight * features + params.nearest_weight * distance, params)
        on_step(Losses(state.step, entropy.item(), features.item(), distance.item()))


def heard_tokens(network: TextNetwork, source: TextSource, inputs: Tensor, masked: float) -> tuple[Tensor, Tensor]:
    """What a source says about finished texts [N, T, D] of embeddings: log-probabilities [1, N, ways]; and the tokens
    [N, K] that meta-training shall see: all but the share `masked` to which the last token of the prompt pays least."""
    length = inputs.shape[1]
    with torch.no_grad():
        heard = source.hear(network, inputs, source.beginning(network))
        order = heard.attention[:, :length].argsort(dim=1, descending=True, stable=True)
        kept = order[:, : kept_count(length, masked)].sort(dim=1).values
        return source.answers(heard).log_softmax(1)[None], kept
