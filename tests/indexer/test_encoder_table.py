"""The table of encoders."""

import pytest

from llm2clip.encoders import list_encoders
from llm2clip.indexer.commands.encoder_table import table


def test_encoder_table_without_a_width_has_all_columns():
    lines = table(list_encoders()).splitlines()
    headings = "params download memory dim px text languages R@1 zh R@1 here"
    assert lines[0].split() == headings.split()
    nano = next(line for line in lines if line.startswith("  nano "))
    assert nano.split()[1:3] == ["7M", "-"]
    assert "wider" not in "\n".join(lines)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_encoder_table_fits_a_narrow_terminal(width):
    text = table(list_encoders(), width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert {"memory", "R@1", "here"} <= set(lines[0].split())
    said = " ".join(text.split())
    assert "A wider terminal shows params" in said
    assert said.endswith(" as well.")
    for card in list_encoders():
        assert any(line.startswith(f"  {card.name} ") for line in lines)
