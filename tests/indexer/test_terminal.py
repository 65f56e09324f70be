"""Text made safe to print, and how commands fail."""

import pytest

from llm2clip.common.terminal import escape_control, log_stderr, one_line_errors


def test_escape_control_shows_control_characters():
    assert escape_control("\x1b[31mred\x07") == r"\x1b[31mred\x07"
    assert escape_control("photo\u202egpj.exe") == "photo\\u202egpj.exe"
    assert escape_control("a\u2028b\u2029c\x85d") == "a\\u2028b\\u2029c\\x85d"
    assert escape_control("caf\udce9") == "caf\\udce9"
    assert escape_control("two\nlines\tand\r") == "two lines and "


@pytest.mark.parametrize(
    "name",
    [
        "Screenshot 2024-05-01 at 9.41.00\u202fAM.png",  # as macOS names them
        "👩\u200d🚀.jpg",
        "می\u200cروم.jpg",
        "東京\u3000タワー.jpg",
        "été\u00a0!.jpg",
        "दो é.png",
        "soft\u00adhyphen.png",
        "\ufeffmarked.png",
        "unassigned \U000e1fff and private \ue000.png",
    ],
)
def test_escape_control_keeps_ordinary_names(name):
    assert escape_control(name) == name


def test_log_stderr_prints_one_line(capsys):
    log_stderr("two\nlines \x1b[2J")
    assert capsys.readouterr() == ("", "two lines \\x1b[2J\n")


def ended(error: BaseException, capsys: pytest.CaptureFixture[str], **options: str) -> tuple[object, str]:
    """Status and standard error of a command that fails so."""
    with pytest.raises(SystemExit) as end, one_line_errors(**options):
        raise error
    out, err = capsys.readouterr()
    assert out == ""
    return end.value.code, err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("got 3,\nexpected 4"), "error: got 3, expected 4"),
        (ValueError(), "error: ValueError"),
        (FileNotFoundError(2, "No such file", "a\x1b.txt"), "error: a\\x1b.txt: No such file"),
        (OSError("disk full"), "error: disk full"),
    ],
)
def test_one_line_errors_prints_expected_errors(error, line, capsys):
    assert ended(error, capsys) == (1, line + "\n")


def test_one_line_errors_exits_130_on_interrupt(capsys):
    assert ended(KeyboardInterrupt(), capsys) == (130, "interrupted\n")
    kept = KeyboardInterrupt(": 3 kept")
    assert ended(kept, capsys, interrupted="; go on") == (130, "interrupted: 3 kept\n")
    assert ended(KeyboardInterrupt(), capsys, interrupted=": go on") == (130, "interrupted: go on\n")


def test_one_line_errors_names_the_extra_of_a_missing_module(capsys):
    missing = ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
    start = "error: No module named 'pyarrow'; this command needs it, install it with: pip install "
    assert ended(missing, capsys, extra="train") == (1, f"{start}'llm2clip-retrieval[train]'\n")
    assert ended(missing, capsys) == (1, f"{start}'llm2clip-retrieval'\n")


def test_one_line_errors_shows_tracebacks_of_bugs():
    for fault in (TypeError("a bug"), ImportError("cannot import name 'x'", name="llm2clip.indexer")):
        with pytest.raises(type(fault)), one_line_errors(extra="train"):
            raise fault
