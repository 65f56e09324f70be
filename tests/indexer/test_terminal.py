"""Text made safe to print, and how commands fail."""

from __future__ import annotations

import pytest

from llm2clip.common.terminal import escape_control, log_stderr, one_line_errors


def test_what_could_steer_a_terminal_becomes_visible():
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
def test_ordinary_names_stay_as_they_are(name):
    assert escape_control(name) == name


def test_a_note_is_one_line_on_standard_error(capsys):
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
def test_expected_failures_are_one_line(error, line, capsys):
    assert ended(error, capsys) == (1, line + "\n")


def test_an_interruption_has_a_status_of_its_own(capsys):
    assert ended(KeyboardInterrupt(), capsys) == (130, "interrupted\n")
    assert ended(KeyboardInterrupt(": 3 kept"), capsys, interrupted="; go on") == (
        130,
        "interrupted: 3 kept\n",
    )
    assert ended(KeyboardInterrupt(), capsys, interrupted=": go on") == (130, "interrupted: go on\n")


def test_a_missing_module_names_what_brings_it(capsys):
    missing = ModuleNotFoundError("No module named 'resvg_py'", name="resvg_py")
    start = "error: No module named 'resvg_py'; this command needs it, install it with: pip install "
    assert ended(missing, capsys, extra="train") == (1, f"{start}'llm2clip-retrieval[train]'\n")
    assert ended(missing, capsys) == (1, f"{start}'llm2clip-retrieval'\n")


def test_faults_of_ours_show_where_they_are():
    for fault in (TypeError("a bug"), ImportError("cannot import name 'x'", name="llm2clip.indexer")):
        with pytest.raises(type(fault)), one_line_errors(extra="train"):
            raise fault
