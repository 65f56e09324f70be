from typing import Annotated

import typer
from typer.testing import CliRunner

from llm2clip.common.terminal import GroupedCommand, make_app, one_of, renamed

app = make_app("Do things.")


@app.callback()
def _several() -> None:
    pass


@app.command(cls=GroupedCommand, context_settings=renamed({"old-size": "size"}))
def paint(
    names: Annotated[list[str], typer.Argument(help="Things to paint.", metavar="THINGS")],
    colour: Annotated[
        str, typer.Option(help="Colour.", callback=one_of("red", "green", "blue"), rich_help_panel="Look")
    ] = "red",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.", rich_help_panel="Output")] = False,
    size: Annotated[
        int | None, typer.Option(help="Size.", show_default="measured", rich_help_panel="Look")
    ] = None,
) -> None:
    """Paint things."""
    typer.echo(f"{names} {colour} {size} {quiet}")


def test_grouped_command_lists_options_by_group():
    shown = CliRunner().invoke(app, ["paint", "--help"]).output
    sections = [line for line in shown.splitlines() if line.endswith(":")]
    assert sections == ["Arguments:", "Look:", "Output:", "Other:"]
    look = shown.split("Look:")[1].split("Output:")[0].splitlines()
    assert [line.split()[0] for line in look if line.strip().startswith("--")] == ["--colour", "--size"]
    assert "[default: red]" in shown
    assert "[default: measured]" in shown
    assert "Usage: root paint [OPTIONS] THINGS...\n" in shown
    assert shown.split("Arguments:\n")[1].split("\n")[0] == "  THINGS  Things to paint.  [required]"
    assert "<" not in shown.split("Look:")[0]


def test_one_of_refuses_other_values():
    done = CliRunner().invoke(app, ["paint", "a", "--colour", "mauve"])
    assert done.exit_code == 2
    assert "Invalid value for '--colour': got 'mauve', expected red, green or blue" in done.stderr


def test_renamed_accepts_the_old_name_and_hides_it():
    for option in (["--old-size", "3"], ["--old-size=3"], ["--size", "3"]):
        assert CliRunner().invoke(app, ["paint", "--quiet", "a", *option]).output == "['a'] red 3 True\n"
    assert CliRunner().invoke(app, ["paint", "--", "--old-size"]).output == "['--old-size'] red None False\n"
    assert CliRunner().invoke(app, ["paint", "a", "--odd-size", "3"]).exit_code == 2
    assert "old-size" not in CliRunner().invoke(app, ["paint", "--help"]).output
