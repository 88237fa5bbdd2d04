"""Rows come back as they were written, also after a kill in the middle of a line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.ledger import Key, Ledger, Row, from_hex, from_line, to_hex, to_line

KEY = Key(0, "qv", "seven", "merge:sum/core", "test", -1, '{"engine": 1}')


@given(st.lists(st.booleans(), max_size=130).map(tuple))
def test_bits_survive(bits: tuple[bool, ...]) -> None:
    assert from_hex(to_hex(bits)) == bits


def test_bits_by_hand() -> None:
    assert to_hex((True, False, True, True, False)) == "5:16"  # 10110


@given(st.dictionaries(st.sampled_from(["spam", "units"]), st.lists(st.booleans(), max_size=9).map(tuple)))
def test_a_row_is_one_line(right: dict[str, tuple[bool, ...]]) -> None:
    row = Row(KEY, right, {"scale": 0.25})
    line = to_line(row)
    assert "\n" not in line
    assert from_line(line) == row


def test_rows_are_there_when_the_folder_is_opened_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    rows = [Row(KEY, {"spam": (True, False)}), Row(Key(1, "", "", "base", "test"), {"spam": (True,)})]
    for row in rows:
        ledger.add(row)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base-1.jsonl", "qv-0.jsonl"]
    assert Ledger(tmp_path).rows == {row.key: row for row in rows}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path, cut: int) -> None:
    first, second = (Row(KEY, {task: (True, False)}) for task in ("spam", "units"))
    Ledger(tmp_path).add(first)
    path = tmp_path / "qv-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + f"{to_line(second)}\n".encode()[:-cut])
    again = Ledger(tmp_path)
    assert again.rows == {KEY: first}
    again.add(second)
    assert path.read_bytes() == whole + f"{to_line(second)}\n".encode()
    assert Ledger(tmp_path).rows == {KEY: second}
