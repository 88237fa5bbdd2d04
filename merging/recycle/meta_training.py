"""Meta-training with a checkpoint at the end of every cycle, which it goes on from."""

from collections.abc import Callable, Sequence
from pathlib import Path

from deltas.factors import Factors
from merging.recycle.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from merging.recycle.meta import MetaStep, MetaTraining, Network, train
from merging.recycle.params import MetaParams
from merging.recycle.surrogates import Pool

History = list[dict[str, float]]


def meta_train(
    place: Path,
    wanted: str,
    lora: dict[str, Factors],
    network: Network,
    pool: Pool,
    params: MetaParams,
    seed: int,
    on_step: Callable[[MetaStep], None],
) -> History:
    """Train `lora` in place to its last iteration, from the file `place` on, if it holds what is `wanted`.

    Returns the means of every cycle. `on_step` is called after every iteration, once the file is written.
    """
    state = MetaTraining(lora)
    history = _restore(place, wanted, state)
    steps: list[MetaStep] = []

    def keep(step: MetaStep) -> None:
        steps.append(step)
        if step.iteration % params.cycle == 0 or step.iteration == params.iterations:
            history.append(cycle_means(steps))
            steps.clear()
            tensors = {f"lora.{name}.{side}": getattr(f, side) for name, f in lora.items() for side in ("A", "B")}
            tensors |= {f"adam.{name}": part for name, part in optimiser_tensors(state.optimiser).items()}
            document = {"identity": wanted, "iteration": step.iteration, "history": history}
            save_checkpoint(place, tensors, document)
        on_step(step)

    train(state, network, pool, params, seed, keep)
    return history


def cycle_means(steps: Sequence[MetaStep]) -> dict[str, float]:
    """The means of one cycle's losses, of taught and of interpolated tasks, and of its accuracies."""
    found: dict[str, float] = {"iteration": steps[-1].iteration}
    for name, interpolated in (("taught", False), ("interpolated", True)):
        losses = [step.loss for step in steps if step.interpolated == interpolated]
        if losses:
            found[name] = sum(losses) / len(losses)
    return found | {"accuracy": sum(step.accuracy for step in steps) / len(steps)}


def _restore(place: Path, wanted: str, state: MetaTraining) -> History:
    """Put a checkpoint into `state`, if there is one."""
    kept = load_checkpoint(place, wanted)
    if kept is None:
        return []
    tensors, document = kept
    for name, factors in state.lora.items():
        factors.A.data.copy_(tensors[f"lora.{name}.A"])
        factors.B.data.copy_(tensors[f"lora.{name}.B"])
    adam = {name.removeprefix("adam."): part for name, part in tensors.items() if name.startswith("adam.")}
    restore_optimiser(state.optimiser, adam)
    state.iteration = document["iteration"]
    history: History = document["history"]
    return history
