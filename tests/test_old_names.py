"""Names that were changed keep their old form: options as hidden aliases, public Python names as aliases."""

import importlib
import re

import pytest
import typer

from llm2clip.common.entrypoint import COMMANDS


@pytest.mark.parametrize(
    "words",
    [
        "llm2clip-index build photos --every 5",
        "llm2clip-eval run --encoder nano --through index --parity upstream",
        "llm2clip-eval prepare flickr30k-1k --pictures",
    ],
)
def test_old_options_are_accepted(words):
    script, name, *arguments = words.split()
    group = typer.main.get_command(importlib.import_module(COMMANDS[script]).app)
    context = group.commands[name].make_context(name, arguments, parent=typer.Context(group))
    shown = group.commands[name].get_help(context)
    assert not re.search(r"--(every|through|parity|pictures)\b", shown)


@pytest.mark.parametrize(
    ("area", "old", "new"),
    [
        ("indexer", "add_pictures", "add_images"),
        ("indexer", "remove_pictures", "remove_images"),
        ("indexer", "BadPicture", "BadImage"),
        ("eval", "ByTies", "TieBounds"),
        ("encoders", "PublishedEncoder", "PublishedEncoder"),
    ],
)
def test_old_public_names_are_the_new_ones(area, old, new):
    module = importlib.import_module(f"llm2clip.{area}")
    assert getattr(module, old) is getattr(module, new)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
