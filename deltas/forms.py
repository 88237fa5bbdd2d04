"""How an adapter's change of one linear layer is applied beside it, exactly and without touching its weight.

For a layer y = W x + b the change is the sum of what is there of

    ΔW = B A + diag(output) W + W diag(input) + dense        Δb = bias

so whoever has W x already adds little to it. Every form is linear in the change: a weighted sum of changes is the
weighted sum of their forms. DoRA and IA³ cost a vector so, where their ΔW is of full rank; only what is of full rank by
nature and has no such structure (HiRA, MiSS in mode bat) is held as ΔW itself.
"""

from typing import NamedTuple

from torch import Tensor

from deltas.factors import Factors


class Forms(NamedTuple):
    """One layer's change, at weight 1, in float32 or wider; a form that it does not have is None.

    output: [out], scales what W x gives, the bias left out. input: [in]. dense: [out, in]. bias: [out].
    """

    factors: Factors | None = None
    output: Tensor | None = None
    input: Tensor | None = None
    dense: Tensor | None = None
    bias: Tensor | None = None


class Layout(NamedTuple):
    """Which forms a layer's change has, from the header alone. `rank` is that of its factors, at most; 0: none."""

    outs: int
    ins: int
    rank: int = 0
    output: bool = False
    input: bool = False
    dense: bool = False
    bias: bool = False

    @property
    def entries(self) -> int:
        """Numbers to keep for it, at most: scaled outputs may have to give back a share of the base layer's bias."""
        vectors = self.outs * (self.output + (self.bias or self.output)) + self.ins * self.input
        return self.rank * (self.outs + self.ins) + vectors + self.outs * self.ins * self.dense

    @property
    def plain(self) -> bool:
        """Whether it is factors and nothing else."""
        return not (self.output or self.input or self.dense or self.bias)
