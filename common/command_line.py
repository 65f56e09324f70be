"""What the four commands share: an application with plain ``--help``, and options in groups."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand


def make_app(summary: str | None = None) -> typer.Typer:
    """An application whose ``--help`` is plain text and imports nothing heavy."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=summary is not None,
        help=summary,
    )


class GroupedCommand(TyperCommand):
    """A command whose ``--help`` lists options under their ``rich_help_panel``, in the order of the signature."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (typer's or click's own)
        """Write one section per group; arguments come first, ``--help`` last."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                group = "Arguments" if param.param_type_name == "argument" else "Other"
                groups.setdefault(getattr(param, "rich_help_panel", None) or group, []).append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
