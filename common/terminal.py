"""What all commands share: grouped help, safe output, errors of one line, Ctrl-C with status 130, old option names."""

from __future__ import annotations

import os
import re
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from llm2clip.common.entrypoint import INTERRUPTED, end_at_once

_BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def escape_control(text: str) -> str:
    """Text from outside made safe to print on one line: control and reordering characters become visible.

    File names and captions may hold escape sequences that would move the cursor, recolour the screen or, by
    reordering the line, show another name than the real one. Everything else stays as it is, so that a path
    can be copied: joined emoji and letters, spaces of any width.
    """
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char in "\t\n\r":
        return " "
    if unicodedata.category(char) in ("Cc", "Cs") or char in _BIDIRECTIONAL or char in "\u2028\u2029":
        return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
    return char


def log_stderr(text: str) -> None:
    """Print one line on standard error."""
    # Python writes what the terminal's encoding lacks to standard error as escapes, never failing.
    print(escape_control(text), file=sys.stderr, flush=True)


@contextmanager
def one_line_errors(*, extra: str | None = None, interrupted: str = "") -> Iterator[None]:
    """End the process on an expected failure: one line on standard error and status 1, on Ctrl-C status 130.

    Notes of the error (``add_note``) follow, each on a line: commands to run are too long for one.

    Args:
        extra: The optional part of the package that brings modules which may be missing, such as ``train``.
        interrupted: What follows the word "interrupted" where the interruption does not say it itself.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        log_stderr(f"{INTERRUPTED}{str(interrupt) or interrupted}")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        log_stderr(f"error: {_reason(error)}")
        for note in getattr(error, "__notes__", ()):
            log_stderr(f"  {note}")
        raise SystemExit(1) from error
    except ImportError as error:
        if (error.name or "").split(".")[0] == "llm2clip":
            raise  # a fault of ours
        from llm2clip.common.files import DISTRIBUTION

        wanted = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
        log_stderr(f"error: {error}; this command needs it, install it with: pip install '{wanted}'")
        raise SystemExit(1) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextmanager
def graceful_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C raises ``KeyboardInterrupt``, so that open work is closed properly."""
    if signal.getsignal(signal.SIGINT) is not end_at_once:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, end_at_once)


def one_of(*values: str) -> Callable[[str | None], str | None]:
    """The ``callback`` of an option that takes one of these values; others are a usage error."""
    from typer import BadParameter

    def check(value: str | None) -> str | None:
        if value is not None and value not in values:
            raise BadParameter(f"got {value!r}, expected {', '.join(values[:-1])} or {values[-1]}")
        return value

    return check


def renamed(options: dict[str, str]) -> dict[str, Callable[[str], str]]:
    """``context_settings`` of a command that accepts old option names without listing them.

    Args:
        options: Old to new name, both without dashes: ``{"through": "index"}``.
    """
    return {"token_normalize_func": lambda name: options.get(name, name)}


_DEFAULT_IN_WORDS = re.compile(r"\[default: \((.+)\)([;\]])")
"""typer writes a default that is given in words as ``[default: (all)]``."""


HELP_NAMES = {"help_option_names": ["-h", "--help"]}


def _show_version(asked: bool) -> None:
    if asked:
        from llm2clip.common.files import DISTRIBUTION, package_version

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
