"""The variants that `remedies` measures: what each changes of the benchmark's choices."""

from typing import Any

from merging.recycle.params import RecycleParams

PLAIN: dict[str, Any] = {
    "steps": 60, "images_per_class": 8, "batch": 40, "queries": 7, "grain": 1, "decay": False, "tv_weight": 0.05,
    "generated": "leaves",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "average": {},
    "ties": {},
    "benchmark": {},
    "real": {},
    "statistics-none": {"feature_weight": 0.0},
    "statistics-leaves": {"generated": "leaves"},
    "statistics-natural": {},
    "steps-15": {"steps": 15},
    "meta-squared": {"distance": "squared"},
    "meta-teacher-student": {"divergence": "teacher_student"},
    "meta-temperature-3": {"temperature": 3.0},
    "meta-interpolation-0": {"interpolation": 0.0},
    "meta-interpolation-1": {"interpolation": 1.0},
    "meta-distinct": {"distinct": True},
    "meta-distinct-ways-12": {"distinct": True, "ways": 12, "interpolation": 1.0},
    "meta-squared-temperature-30": {"distance": "squared", "temperature": 30.0},
    "meta-rate-3e-4": {"high_rate": 3e-4},
    "meta-masked-0": {"mask": {}},
    "mixed": {"mixed": 0.5},
    "from-ties": {},
    "from-ties-mixed": {"mixed": 0.5},
    "consensus-from-ties": {},
    "plain": PLAIN,
    "plain-rate-0.1-variation-0.3": {**PLAIN, "rate": 0.1, "tv_weight": 0.3},
    "plain-grain-3": {**PLAIN, "grain": 3, "tv_weight": 0.0},
    "plain-real": PLAIN,
}
"""Name -> what is changed of the benchmark's choices, in inversion, in meta-training or in the whole. `plain` is what a
distillation of this size was before remedies: no grid, no decay, leaves. `…from-ties` begin with the TIES merge of the
sources instead of a new LoRA; `consensus-…` follow all sources' features (`consensus.py`)."""


def changed(params: RecycleParams, update: dict[str, Any]) -> RecycleParams:
    """The same with other values of these fields, in whatever part they are."""
    document = params.model_dump()
    for name, value in update.items():
        part = next((own for own in (document["inversion"], document["meta"], document) if name in own), None)
        if part is None:
            raise KeyError(name)
        part[name] = value
    return RecycleParams.model_validate(document)
