import json
import os
import stat
import tarfile

import numpy as np
import pytest

from llm2clip.train.synthetic import emoji as emoji_module
from llm2clip.train.synthetic.emoji import LANGUAGES, Emoji, codepoints, load_emoji, render_style
from llm2clip.train.synthetic.packages import STYLES, TEXT_PACKAGES, Package, SourceError, fetch, style

SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="8" height="8" fill="#ff0000"/></svg>'


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A stand-in for npm that packs a folder whose name is the package's."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\n[ -f {shelf}/box.tgz ] || {{ echo 'npm error 404 not found' >&2; exit 1; }}\n"
        f"cp {shelf}/box.tgz .\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return shelf


def test_fetch_unpacks_a_package_once(npm, tmp_path):
    (tmp_path / "word.txt").write_text("hello")
    with tarfile.open(npm / "box.tgz", "w:gz") as tar:
        tar.add(tmp_path / "word.txt", arcname="package/word.txt")
    package = Package(name="@scope/box", version="1.2.3", client="npm")
    folder = fetch(package, tmp_path / "cache")
    assert folder.name == "scope-box-1.2.3"
    assert (folder / "package" / "word.txt").read_text() == "hello"
    (npm / "box.tgz").unlink()
    assert fetch(package, tmp_path / "cache") == folder


def test_fetch_failure_gives_a_reason_and_leaves_nothing(npm, tmp_path):
    package = Package(name="box", version="1.0.0", client="npm")
    with pytest.raises(SourceError, match="cannot fetch package 'box' with npm: npm error 404 not found"):
        fetch(package, tmp_path / "cache")
    assert not (tmp_path / "cache" / "box-1.0.0").exists()


def test_fetch_names_a_missing_client(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="the command 'npm' is not installed"):
        fetch(Package(name="box", version="1", client="npm"), tmp_path)


def test_styles_never_train_on_openmoji():
    assert [s.name for s in STYLES if not s.trained] == ["openmoji"]
    with pytest.raises(ValueError, match=r"unknown artwork style 'oil'.*'noto'"):
        style("oil")


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def packages(tmp_path):
    """Unpacked packages with two emoji: a giraffe, and a heart whose code point carries a variation selector."""
    cache = tmp_path / "cache"
    twemoji, openmoji = cache / style("twemoji").package.folder, cache / style("openmoji").package.folder
    for code in ("1f992", "2764"):
        put(twemoji, f"package/{code}.svg", SQUARE)
    entries = [
        {"hexcode": "1F992", "emoji": "🦒", "group": "animals-nature"},
        {"hexcode": "2764-FE0F", "emoji": "❤️", "group": "smileys-emotion"},
        {"hexcode": "1F9D1-1F3FB", "emoji": "🧑🏻", "group": "people-body"},
    ]
    put(openmoji, "package/data/openmoji.json", entries)
    put(openmoji, "package/color/svg/1F992.svg", SQUARE)
    for package, kind in zip(TEXT_PACKAGES, ("annotations", "annotationsDerived"), strict=True):
        put(cache / package.folder, "package/LICENSE", "")
        for language in ("en", "zh"):
            names = {"🦒": "giraffe", "❤": "red heart"} if language == "en" else {"🦒": "长颈鹿"}
            table = {char: {"tts": [name], "default": ["spots", name]} for char, name in names.items()}
            found = table if kind == "annotations" else {"🧑🏻": {"tts": ["light"], "default": []}}
            put(
                cache / package.folder,
                f"package/{kind}/{language}/annotations.json",
                {kind: {"annotations": found}},
            )
    return cache


def test_load_emoji_reads_names_and_keywords_from_cldr(packages):
    giraffe, heart = load_emoji(packages)
    assert giraffe.names == {"en": "giraffe", "zh": "长颈鹿"}
    assert giraffe.keywords["en"] == ("spots",)
    assert giraffe.group == "animals-nature"
    assert heart.char == "❤️"
    assert set(giraffe.names) <= set(LANGUAGES)


def test_codepoints_leave_out_variation_selectors():
    assert codepoints("❤️") == "2764"
    assert codepoints("👩‍🚒") == "1f469-200d-1f692"
    assert emoji_module._canonical("0023-FE0F-20E3") == "23-20e3"


def test_render_style_fits_svg_artwork_into_the_square(packages):
    pytest.importorskip("resvg_py", reason="the train extra draws SVG")
    things = load_emoji(packages)
    ((index, image),) = render_style(style("openmoji"), things, packages, size=16)
    assert index == 0
    pixels = np.asarray(image)
    assert pixels.shape == (16, 16, 4)
    assert tuple(pixels[8, 8]) == (255, 0, 0, 255)


def test_render_style_finds_iconify_artwork_by_code_and_name(tmp_path):
    pytest.importorskip("resvg_py", reason="the train extra draws SVG")
    chosen = style("emojione")
    folder = tmp_path / chosen.package.folder / "package"
    rect = '<rect width="32" height="64" fill="currentColor"/>'
    put(
        folder,
        "icons.json",
        {"width": 64, "height": 64, "icons": {"red-heart": {"body": rect}, "flag-for-chad": {"body": rect}}},
    )
    things = [
        Emoji(char="❤️", names={"en": "red heart"}, keywords={}, group=""),
        Emoji(char="🦒", names={"en": "giraffe"}, keywords={}, group=""),
        Emoji(char="🇹🇩", names={"en": "flag: Chad"}, keywords={}, group=""),
    ]
    drawn = dict(render_style(chosen, things, tmp_path, size=16))
    assert sorted(drawn) == [0, 2]
    pixels = np.asarray(drawn[0])
    assert tuple(pixels[8, 2]) == (0, 0, 0, 255)
    assert pixels[8, 13, 3] == 0
