"""``--golden-root`` wherever the tests are started from, and what a missing golden case means."""

import pytest

from .golden.conftest import OURS, Golden


def test_the_option_is_known_wherever_tests_are_started(pytestconfig):
    # Options count only where pytest meets them before it collects: beside the tests' own root, not below it.
    assert pytestconfig.getoption("--golden-root", "unknown") != "unknown"


def test_our_copies_are_complete_and_others_need_not_be(tmp_path):
    with pytest.raises(pytest.fail.Exception, match=f"no case z_none in {OURS}"):
        Golden(OURS, {}).folder("z_none")
    with pytest.raises(pytest.skip.Exception, match=f"no case z_none in {tmp_path}"):
        Golden(tmp_path, {}).folder("z_none")
    runners = {path.stem.removeprefix("test_") for path in OURS.parent.glob("test_*.py")}
    assert {path.name for path in OURS.iterdir()} == runners
