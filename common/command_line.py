"""What the four commands share: an application with plain ``--help``, and options in groups."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_DEFAULT_IN_WORDS = re.compile(r"\[default: \((.+)\)([;\]])")
"""typer writes a default that is given in words as ``[default: (all)]``."""


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


def _show_version(asked: bool) -> None:
    if asked:
        from llm2clip.common.installation import DISTRIBUTION, package_version

        typer.echo(f"{DISTRIBUTION} {package_version() or '(not installed)'}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
]


def make_app(summary: str | None = None) -> typer.Typer:
    """An application whose ``--help`` is plain text and imports nothing heavy; ``summary``: of several commands."""
    app = typer.Typer(
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=summary is not None,
        help=summary,
        context_settings=HELP_NAMES,
    )
    if summary is not None:

        def with_version(version: VersionOption = False) -> None:
            pass

        app.callback()(with_version)
    return app


class GroupedCommand(TyperCommand):
    """A command whose ``--help`` lists options under their ``rich_help_panel``, in the order of the signature.

    Arguments and options are shown by their metavar alone, without the names of Python types.
    """

    def get_help_option_names(self, ctx: Any) -> list[str]:  # noqa: ANN401 (typer's or click's own)
        """``-h`` and ``--help``."""
        ctx.help_option_names = HELP_NAMES["help_option_names"]
        return list(super().get_help_option_names(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 (typer's or click's own)
        """``[OPTIONS] FOLDER [NAMES]...``."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = _argument_name(param) if param.required else f"[{_argument_name(param)}]"
                pieces.append(name if param.nargs == 1 else f"{name}...")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (typer's or click's own)
        """Write one section per group; arguments come first, ``--help`` last."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                is_argument = param.param_type_name == "argument"
                name = _argument_name(param) if is_argument else record[0]
                text = _DEFAULT_IN_WORDS.sub(r"[default: \1\2", record[1])
                group = "Arguments" if is_argument else "Other"
                groups.setdefault(getattr(param, "rich_help_panel", None) or group, []).append((name, text))
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def _argument_name(param: Any) -> str:  # noqa: ANN401 (typer's or click's own)
    return str(param.metavar or param.name.upper())
