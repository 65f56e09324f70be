"""The whole path on a tiny set: images and captions to results, leaderboard, page, comparison, index; in seconds."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.encoders.fake import COLOURS
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.image_folder import load_data
from llm2clip.eval.report.compare import compare_encoders, conclusion
from llm2clip.eval.report.csv_table import csv_text
from llm2clip.eval.report.html import page_data, render_page
from llm2clip.eval.report.leaderboard import build_board
from llm2clip.eval.report.markdown import markdown
from llm2clip.eval.results.records import unpack
from llm2clip.eval.results.validation import read_results
from llm2clip.eval.runner.measure import MeasureOptions
from llm2clip.eval.runner.run import Candidate, RunOptions, run
from llm2clip.eval.stats.bootstrap import Resampling
from llm2clip.indexer import build_index, open_index


@pytest.fixture
def six(tmp_path, tars, colours):
    """Six colours; English captions say which, of the German ones two are exchanged."""
    items = {}
    for number, (word, rgb) in enumerate(colours.palette.items()):
        german = list(colours.german)[number]
        captions = {"en": [f"a {word} thing", word], "de": german}
        items[str(number)] = (tars.colour(rgb), {"caption": word, "captions": captions})
    return tars.write(tmp_path / "six.tar", items)


@pytest.fixture
def options(tmp_path):
    how = MeasureOptions(ks=(1, 5), resampling=Resampling(times=200))
    return RunOptions(out=tmp_path / "results", cache=tmp_path / "vectors", measure=how)


def sets(six):
    return [load_data(six, language=language) for language in ("en", "de")]


def fake(label="", seed=0):
    return Candidate(label=label, open=lambda: FakeEncoder(seed=seed))


@pytest.fixture
def indexed(tmp_path, tars, options):
    """Run the fake encoder on English captions of ``six``, with an index of a tar or of such colours."""

    def measure(six, of, *, seed=0, where=None):
        if isinstance(of, dict):
            of = tars.write(
                tmp_path / "other.tar", {k: (tars.colour(rgb), {"caption": "x"}) for k, rgb in of.items()}
            )
        place = tmp_path / f"{of.stem}.index"
        if not place.exists():
            build_index(of, place, encoder=FakeEncoder())
        how = replace(options, indexes=(place,), where=where)
        return next(iter(run([fake(seed=seed)], sets(six)[:1], options=how)))

    return measure


def test_run_gives_numbers_worked_out_by_hand(six, colours, options):
    found = list(run([Candidate(label="colours", open=colours.Encoder)], sets(six), options=options))
    english, german = found
    assert [one.set.id for one in found] == ["six:en", "six:de"]
    assert (english.set.images, english.set.captions, german.set.captions) == (6, 12, 6)
    assert [[at.value for at in one.recall] for one in english.directions] == [[1, 1], [1, 1]]
    # Of six German names "schwarz" and "weiß" stand at the wrong image, and their own scores 0 like all others.
    assert [[at.value for at in one.recall] for one in german.directions] == [[4 / 6, 4 / 6], [4 / 6, 4 / 6]]
    assert [at.optimistic for at in german.directions[0].recall] == [4 / 6, 1]
    assert german.directions[0].median_rank == 1
    assert german.directions[0].recall[0].low < 4 / 6 < german.directions[0].recall[0].high
    assert sorted(unpack(german.directions[0].ranks).tolist()) == [1, 1, 1, 1, 6, 6]
    assert unpack(english.directions[0].clusters).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert english.lengths is not None
    assert [(one.label, one.queries, one.value) for one in english.lengths.buckets] == [("<=16", 12, 1)]
    assert english.encoder.weights_sha256 == "0" * 64
    assert english.set.sha256 != german.set.sha256
    assert read_results([options.out]) == [german, english]


def test_run_again_encodes_nothing(six, options):
    first = list(run([fake()], sets(six), options=options))
    encoder = FakeEncoder()
    again = list(run([Candidate(label="", open=lambda: encoder)], sets(six), options=options))
    assert (encoder.prepared, encoder.text_batches) == (0, [])
    for one, other in zip(first, again, strict=True):
        assert replace(one, date="", cost=None) == replace(other, date="", cost=None)
    encoded = [one.cost.images_encoded for one in first if one.cost]
    assert encoded == [6, 0]  # the second language asks the same
    assert [one.cost.images_encoded for one in again if one.cost] == [0, 0]


def test_run_asks_long_captions_with_their_beginnings(scenes_tar, colours, options):
    # The second colour stands behind a hundred words: whoever reads twenty does not know it.
    scenes = load_data(scenes_tar(), language="en")
    [found] = run([Candidate(label="c", open=colours.Encoder)], [scenes], options=options)
    assert found.lengths is not None
    points = {one.label: one.value for one in found.lengths.prefixes}
    assert list(points) == ["10 words", "20 words", "40 words", "80 words", "whole"]
    assert points["whole"] == 1.0
    assert points["20 words"] == 0.0  # five images begin alike, and ties count against
    assert found.lengths.truncated == 0.0


def test_run_index_recall_of_exact_and_foreign_indexes(six, indexed, tmp_path, options):
    english = indexed(six, six)
    [through] = english.index_recall
    assert through.images == 6
    direct = {at.k: at.value for at in english.directions[0].recall}
    found = {at.k: (at.exact, at.index_recall, at.overlap) for at in through.at}
    assert found == {k: (direct[k], direct[k], 1) for k in (1, 5)}
    with pytest.raises(ValueError, match="was built with another version of encoder"):
        indexed(six, six, seed=1)
    both = replace(options, indexes=(tmp_path / "six.index",))
    found = run([fake("0"), fake("1", seed=1)], sets(six)[:1], options=both)
    assert [len(one.index_recall) for one in found] == [1, 0]  # each takes the indexes that it made
    with pytest.raises(DatasetError, match=r"none of the answers of .*other.index is an image of six:en"):
        indexed(six, {str(n): (90 + n, 90, 90) for n in range(6)})


def test_run_index_recall_under_a_filter(six, indexed, tmp_path):
    indexed(six, six)
    with open_index(tmp_path / "six.index") as index:
        names = sorted(hit.key for hit in index.search(FakeEncoder().encode_texts(["red"]), k=6)[0])
    wanted = f"key = '{names[0]}' OR key = '{names[3]}'"
    [through] = indexed(six, six, where=wanted).index_recall
    assert through.where == wanted
    # Two images are left, so five answers always have the right one; the seven captions hold others.
    assert {at.k: (at.exact, at.index_recall, at.overlap) for at in through.at}[5] == (1.0, 1.0, 1.0)
    with pytest.raises(DatasetError, match=r"no image of six:en in .*six.index passes the filter 'width"):
        indexed(six, six, where="width > 100000")


def test_run_index_recall_of_an_index_with_lost_images(six, indexed):
    """Half of the images and as many others: what is missing counts as lost."""
    kept = {str(n): rgb for n, rgb in enumerate(list(COLOURS.values())[2:5])}
    at = indexed(six, kept | {f"grey{n}": (90 + n, 90, 90) for n in range(3)}).index_recall[0].at[0]
    assert (at.exact, at.index_recall, at.overlap) == (1.0, 0.5, 0.5)


def test_run_index_recall_at_every_k(tmp_path, tars, colours, options):
    """An image half blue and half green is told as blue: all blue comes first, and it second."""
    images = {word: (tars.colour(rgb), word) for word, rgb in colours.palette.items()}
    images["half"] = (tars.halves(colours.palette["blue"], colours.palette["green"]), "blue")
    items = {key: (image, {"captions": {"en": told}}) for key, (image, told) in images.items()}
    place = tars.write(tmp_path / "told.tar", items)
    build_index(place, tmp_path / "told.index", encoder=colours.Encoder())
    how = replace(options, indexes=(tmp_path / "told.index",))
    reader = Candidate(label="", open=colours.Encoder)
    [found] = run([reader], [load_data(place, language="en")], options=how)
    through = [(at.k, at.exact, at.index_recall) for at in found.index_recall[0].at]
    assert through == [(1, 6 / 7, 6 / 7), (5, 1, 1)]
    assert found.lengths is not None
    assert [(one.queries, one.value) for one in found.lengths.buckets] == [(7, 6 / 7)]


def test_run_of_two_encoders_to_page_and_comparison(tmp_path, tars, colours, options):
    # Thirty images by two halves; whoever ignores the order of words finds half of them at most.
    items = {}
    for left, right in itertools.permutations(colours.palette, 2):
        image = tars.halves(colours.palette[left], colours.palette[right])
        items[f"{left}-{right}"] = (image, {"caption": f"{left} {right}"})
    pairs = load_data(tars.write(tmp_path / "pairs.tar", items))
    reads = Candidate(label="reads", open=colours.Encoder)
    bag = Candidate(label="bag <script>", open=lambda: Bag(colours.Encoder(bag=True)))
    found = list(run([reads, bag], [pairs], options=options))
    assert [one.directions[0].recall[0].value for one in found] == [1.0, 0.0]
    board = build_board(found)
    [table] = board.tables
    assert [(row.label, row.near_best) for row in table.ours] == [("reads", True), ("bag <script>", False)]
    text = markdown(board, limit=5)
    assert "| **reads** | 100.0 (" in text
    lines = csv.DictReader(io.StringIO(csv_text(board)))
    values = {(line["model"], line["direction"], line["k"]): float(line["value"]) for line in lines}
    assert values["reads", "t2i", "1"] == 100.0
    page = render_page(board)
    assert "bag <script>" not in page
    assert page_data(board, now=datetime(2026, 1, 2, tzinfo=UTC))["results"][0]["near"] is True
    compared = compare_encoders(found, "reads", "bag <script>", resampling=Resampling(times=500))
    assert [line.sure for line in compared.lines] == [True, True]
    assert conclusion(compared)[0].startswith("reads is better than bag <script> in 2 of 2 comparisons")


class Bag:
    """The stub without an order of words, under hashes of its own."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.info = replace(encoder.info, weights_sha256="b" * 64)

    def __getattr__(self, name):
        return getattr(self.encoder, name)


def test_run_leaderboard_and_compare_commands(six, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoders = ("--encoder", "nano", "--encoder", "again=nano")
    places = ("--out", "out", "--cache", "vectors", "--limit", "4")
    done = invoke("run", *encoders, "--data", f"mine={six}", "--language", "all", *places)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name.split("-")[0] for name in names] == ["mine+partial"] * 4
    written = ("--html", "a/b.html", "--markdown", "b.md", "--csv", "b.csv")
    shown = invoke("leaderboard", f"out/{names[2]}", f"out/{names[3]}", *written)
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "a" / "b.html").read_text().startswith("<!DOCTYPE html>")
    assert "only the first 4 of 6 images" in (tmp_path / "b.md").read_text()
    compared = invoke("compare", "nano", "again", "out")
    assert compared.exit_code == 0, compared.output
    assert "nano and again cannot be distinguished in any of 4 comparisons" in compared.output
    data = json.loads((tmp_path / "out" / names[0]).read_text())
    assert data["set"]["complete"] is False


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --encoder nano", "no data set was named; name a protocol"),
        ("run --encoder nano --dataset flickr30", "unknown protocol 'flickr30'; did you mean"),
        ("run --encoder a=nano --encoder a=clip-vit-b-16 --data .", "two encoders have the same label"),
        ("run --encoder nono --data six.tar --language en", "nono"),
        ("leaderboard nowhere", "nowhere"),
        ("compare a b", "eval-results"),
    ],
)
def test_commands_fail_in_one_line(six, invoke, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    done = invoke(*command.split())
    assert done.exit_code == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_run_reports_progress_of_every_item(six, options):
    told = []

    class Reporter:
        def begin(self, encoder, dataset):
            told.append(("begin", dataset.id))

        def advance(self, tower, number):
            told.append((tower, number))

        def end(self, result):
            told.append(("end", result.set.id))

    list(run([fake()], sets(six)[:1], options=options, reporter=Reporter()))
    assert sum(number for side, number in told if side == "images") == 6
    assert sum(number for side, number in told if side == "texts") == 12
    assert np.isin(["begin", "end"], [name for name, _ in told]).all()


def test_run_throughput_fills_the_cost_columns(six, options):
    timed = replace(options, throughput=True)
    [found] = run([fake("timed")], sets(six)[:1], options=timed)
    assert found.cost is not None
    assert min(found.cost.images_per_second, found.cost.texts_per_second, found.cost.query_ms) > 0
    board = build_board([found])
    assert "| images/s | texts/s | ms/query | MB | note |" in markdown(board, limit=0)
    [line, *_] = csv.DictReader(io.StringIO(csv_text(board)))
    assert float(line["texts_per_second"]) == pytest.approx(found.cost.texts_per_second, abs=1e-3)
    assert float(line["peak_memory_mb"]) == found.cost.peak_memory_mb
    # A later run without timing keeps what was timed.
    [again] = run([fake("timed")], sets(six)[:1], options=options)
    assert again.cost.query_ms == found.cost.query_ms


def test_run_accepts_the_old_name_of_index(six, invoke, tmp_path):
    named = ("run", "--encoder", "nano", "--data", six, "--language", "en", "--where", "x = 1")
    done = invoke(*named, "--through", tmp_path / "nowhere")
    assert (done.exit_code, "nowhere" in done.stderr) == (1, True)
    assert "--through " not in invoke("run", "--help").output
