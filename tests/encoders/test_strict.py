"""Settings from JSON: round trips, and a clear word about every mistake."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.encoders import ModelError
from llm2clip.encoders.core.files import from_json, to_json


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    colour: Colour = Colour.RED
    side: Literal["left", "right"] = "left"
    widths: tuple[int, int] = (1, 2)
    languages: tuple[str, ...] = ()
    spare: Inner | None = None
    limit: int | None = None
    on: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")


INNERS = st.builds(Inner, depth=st.integers(), rate=st.floats(allow_nan=False))
OUTERS = st.builds(
    Outer,
    name=st.text(),
    inner=INNERS,
    colour=st.sampled_from(Colour),
    side=st.sampled_from(["left", "right"]),
    widths=st.tuples(st.integers(), st.integers()),
    languages=st.lists(st.text()).map(tuple),
    spare=st.none() | INNERS,
    limit=st.none() | st.integers(min_value=0),
    on=st.booleans(),
)


@given(OUTERS)
def test_from_json_reverses_to_json(original: Outer):
    assert from_json(Outer, json.loads(json.dumps(to_json(original))), where="config") == original


def test_from_json_takes_whole_numbers_for_floats():
    inner = from_json(Inner, {"depth": 1, "rate": 2}, where="config")
    assert (inner.rate, type(inner.rate)) == (2.0, float)


GOOD = {"name": "a", "inner": {"depth": 1}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**GOOD, "colr": "red"}, r"config: unknown keys: \['colr'\]; did you mean 'colour'\?"),
        ({**GOOD, "zzz": 1}, r"config: unknown keys: \['zzz'\]; expected some of \['colour', 'inner', "),
        ({"inner": {"depth": 1}}, r"config: missing keys: \['name'\]"),
        ({**GOOD, "inner": {}}, r"config\.inner: missing keys: \['depth'\]"),
        ({**GOOD, "inner": {"dept": 1}}, r"config\.inner: unknown keys: \['dept'\]; did you mean 'depth'\?"),
        ({**GOOD, "inner": 5}, r"config\.inner: expected an object, got int 5"),
        ({**GOOD, "name": 5}, r"config\.name: expected str, got int 5"),
        ({**GOOD, "name": None}, r"config\.name: expected str, got NoneType None"),
        ({**GOOD, "inner": {"depth": 1.0}}, r"config\.inner\.depth: expected int, got float 1\.0"),
        ({**GOOD, "inner": {"depth": True}}, r"config\.inner\.depth: expected int, got bool True"),
        ({**GOOD, "on": 1}, r"config\.on: expected bool, got int 1"),
        ({**GOOD, "limit": "3"}, r"config\.limit: expected int, got str '3'"),
        ({**GOOD, "colour": "green"}, r"config\.colour: expected one of \['red', 'blue'\], got 'green'"),
        ({**GOOD, "side": "up"}, r"config\.side: expected one of \['left', 'right'\], got 'up'"),
        ({**GOOD, "side": ["left"]}, r"config\.side: expected one of \['left', 'right'\], got \['left'\]"),
        ({**GOOD, "widths": [1]}, r"config\.widths: expected 2 values, got 1"),
        ({**GOOD, "widths": 7}, r"config\.widths: expected a list, got int 7"),
        ({**GOOD, "widths": [1, "x"]}, r"config\.widths\[1\]: expected int, got str 'x'"),
        ({**GOOD, "languages": ["en", 3]}, r"config\.languages\[1\]: expected str, got int 3"),
        ({**GOOD, "limit": -1}, r"config: limit must not be negative, got -1"),
        ([], r"config: expected an object, got list \[\]"),
    ],
)
def test_from_json_names_mistakes(data: object, message: str):
    with pytest.raises(ModelError, match=message):
        from_json(Outer, data, where="config")


def test_from_json_shortens_long_values():
    with pytest.raises(ModelError) as caught:
        from_json(Outer, {**GOOD, "limit": "x" * 1000}, where="config")
    assert len(str(caught.value)) < 120
