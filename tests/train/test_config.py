"""Configurations from files and overrides."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from llm2clip.train.core.config import ConfigError, build_config, config_data, override, read_config


@dataclass(frozen=True, kw_only=True)
class Part:
    rank: int = 16
    names: tuple[str, ...] = ("q", "k")


@dataclass(frozen=True, kw_only=True)
class Whole:
    model: str
    lr: float = 1e-4
    steps: int | None = None
    kind: Literal["lora", "all"] = "lora"
    part: Part = field(default_factory=Part)

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


def test_build_config_reads_back_what_config_data_gives():
    config = Whole(model="m", lr=0.5, steps=7, part=Part(rank=2, names=("a",)))
    assert build_config(Whole, config_data(config), where="x") == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": "m", "lerning": 1}, "x: unknown keys: ['lerning']"),
        ({"model": "m", "part": {"rang": 1}}, "x.part: unknown keys: ['rang']; did you mean 'rank'?"),
        ({"model": "m", "lr": "fast"}, "x.lr: expected float, got str 'fast'"),
        ({"model": "m", "steps": 1.5}, "x.steps: expected int, got float 1.5"),
        ({"model": "m", "kind": "some"}, "x.kind: expected one of ['lora', 'all'], got 'some'"),
        ({"lr": 0.1}, "x: missing keys: ['model']"),
        ({"model": "m", "lr": -1}, "x: lr must be positive, got -1.0"),
        ({"model": "m", "part": {"names": "q"}}, "x.part.names: expected a list, got str 'q'"),
    ],
)
def test_build_config_names_what_does_not_fit(data, message):
    with pytest.raises(ConfigError) as caught:
        build_config(Whole, data, where="x")
    assert message in str(caught.value)


def test_override_reads_values_as_toml_and_leaves_the_original():
    data = {"cc": {"lr": 1.0, "part": {"rank": 1}}}
    settings = [
        "cc.lr=1e-4",
        "cc.model=some/folder",
        'cc.part.names=["a"]',
        "cc.steps = none",
        "cc.flag=true",
    ]
    assert override(data, settings) == {
        "cc": {
            "lr": 1e-4,
            "model": "some/folder",
            "part": {"rank": 1, "names": ["a"]},
            "steps": None,
            "flag": True,
        }
    }
    assert data == {"cc": {"lr": 1.0, "part": {"rank": 1}}}


@pytest.mark.parametrize("setting", ["cc.lr", "=3", "cc.=3", ".lr=3"])
def test_override_refuses_what_is_no_setting(setting):
    with pytest.raises(ConfigError, match=r"expected a field and its value, such as cc\.lr=1e-4"):
        override({}, [setting])


def test_override_refuses_fields_of_a_value():
    with pytest.raises(ConfigError, match=r"cannot set cc\.lr\.x: lr is a value"):
        override({"cc": {"lr": 1}}, ["cc.lr.x=1"])


def test_read_config_reads_toml_and_json(tmp_path):
    (tmp_path / "a.toml").write_text("[cc]\nlr = 0.5\n")
    (tmp_path / "a.json").write_text('{"cc": {"lr": 0.5}}')
    assert read_config(tmp_path / "a.toml") == read_config(tmp_path / "a.json") == {"cc": {"lr": 0.5}}
    (tmp_path / "b.toml").write_text("lr = = 1")
    for name, reason in (
        ("b.toml", "cannot be read"),
        ("c.json", "cannot be read"),
        ("d.yaml", r"\.toml or \.json"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_config(tmp_path / name)
