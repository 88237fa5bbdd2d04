"""Names and patterns as they are written: each module gets its own number back and no other is adapted, here and in
PEFT."""

import json

from hypothesis import example, given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from deltas.patterns import MAX_PATTERN, Budget, Expression, PatternTable, written_pattern
from deltas.short_names import target_modules

NAMES = st.lists(st.sampled_from(["proj_out", "blocks", "0", "fc"]), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(NAMES, st.integers(1, 3), min_size=1), st.integers(1, 3))
@example({"proj_out": 2, "blocks.0.proj_out": 3, "blocks.1.proj_out": 3}, 3)
@example({"proj_out": 2, "single.proj_out": 1, "a.single.proj_out": 3}, 3)
def test_a_written_pattern_gives_every_module_its_own_number(numbers: dict[str, int], common: int) -> None:
    pattern = json.loads(json.dumps(written_pattern(numbers, common), sort_keys=True))  # as configs are saved
    table = PatternTable(pattern, "rank_pattern")
    assert {name: table.first(name, common) for name in numbers} == numbers
    assert {name: pattern.get(get_pattern_key(list(pattern), name), common) for name in numbers} == numbers


def adapted(config: list[str] | str, modules: set[str]) -> set[str]:
    """The modules that PEFT adapts for this config; a list is a set to it."""
    asked = LoraConfig(target_modules=config)
    return {name for name in modules if check_target_module_exists(asked, name)}


@given(st.sets(NAMES, min_size=1), st.sets(NAMES))
@example({"proj_out"}, {"blocks.0.proj_out", "blocks.1.proj_out"})
@example({"proj_out", "blocks.0.proj_out"}, {"blocks.1.proj_out"})
def test_no_module_is_adapted_that_the_file_does_not_hold(names: set[str], others: set[str]) -> None:
    base = dict.fromkeys(names | others, (8, 6))
    assert adapted(target_modules(sorted(names), base), names | others) == names
    unknown = target_modules(sorted(names), None)
    assert adapted(unknown, names) == names
    nested = any(name.endswith(f".{end}") for name in names for end in names)
    assert isinstance(unknown, str) == nested
    if nested:
        assert adapted(unknown, names | others) == names
        expression = Expression(unknown, Budget("target_modules"))
        assert {name for name in names | others if expression.matches(name)} == names


def test_plain_names_stay_a_list_and_many_blocks_stay_readable() -> None:
    assert target_modules(["layers.0.fc", "lm_head"], None) == ["layers.0.fc", "lm_head"]
    deeper = dict.fromkeys(("model.layers.0.fc", "model.layers.1.fc"), (8, 6))  # the base, with its head around it
    assert target_modules(["layers.0.fc"], deeper) == ["layers.0.fc"]
    blocks = [
        f"single_transformer_blocks.{i}.{part}" for i in range(38) for part in ("attn.to_q", "proj_mlp", "proj_out")
    ]
    told = target_modules(["proj_out", *blocks], None)
    assert len(told) < MAX_PATTERN / 10
    assert adapted(told, {"proj_out", "blocks.0.proj_out", *blocks}) == {"proj_out", *blocks}
