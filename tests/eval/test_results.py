"""A result goes to disk and back unchanged, and nothing that is not one is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from llm2clip.eval.results.records import CostRecord, IndexRecall, RecallLoss, pack, unpack, write_result
from llm2clip.eval.results.validation import read_result, read_results


def test_write_result_round_trip(tmp_path, make_result):
    result = make_result()
    path = write_result(result, tmp_path)
    assert path.name == "colours--enc-00000000.json"
    assert read_result(path) == result
    assert read_results([tmp_path]) == read_results([path]) == [result]
    shown = json.loads(path.read_text())
    assert shown["format"] == "llm2clip-eval-result"
    assert shown["directions"][0]["recall"][0]["value"] == 0.5
    write_result(replace(result, seed=7), tmp_path)  # the same encoder on the same set: one file
    assert read_results([tmp_path])[0].seed == 7


@pytest.mark.parametrize("images", ["images", "pictures"])
def test_read_result_reads_version_1(tmp_path, make_result, images):
    loss = RecallLoss(k=1, exact=0.5, index_recall=0.25, overlap=0.5)
    through = IndexRecall(index="flat", generation="2", images=3, at=(loss,), milliseconds=1.0)
    cost = CostRecord(
        **{"images_encoded": 2, "texts_encoded": 4, "images_per_second": 9.0, "texts_per_second": None},
        **{"peak_memory_mb": 100, "threads": 2},
    )
    result = replace(make_result(), index_recall=(through,), cost=cost)
    result = replace(result, encoder=replace(result.encoder, parity="reference"))
    data = json.loads(write_result(result, tmp_path).read_text())
    data["version"], data["encoder"]["parity"] = 1, "upstream"
    del data["cost"]["query_ms"]
    old = {f"images{part}": f"{images}{part}" for part in ("", "_encoded", "_per_second")}
    old["index_recall"] = "through"

    def renamed(value):
        if isinstance(value, dict):
            return {old.get(key, key): renamed(each) for key, each in value.items()}
        return [renamed(each) for each in value] if isinstance(value, list) else value

    path = tmp_path / "old.json"
    path.write_text(json.dumps(renamed(data)))
    assert read_result(path) == result


def test_pack_round_trip():
    ranks = np.array([1, 3, 70_000, np.inf])
    assert unpack(pack(ranks)).tolist() == [1, 3, 70_000, 2**31 - 1]
    assert unpack(pack(np.zeros(0))).tolist() == []
    with pytest.raises(ValueError, match="packed numbers cannot be read"):
        unpack(pack(ranks)[:-6] + "AAAAA=")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("date"), r"missing keys: \['date'\]"),
        (lambda data: data.update(dates="today"), r"unknown keys: \['dates'\]; did you mean 'date'"),
        (lambda data: data.update(format="other"), "is no result: 'format' is 'other'"),
        (lambda data: data.update(version=3), "is of version 3, expected 2: measure again"),
        (lambda data: data["directions"][0].update(queries="4"), "queries: expected int"),
        (lambda data: data["directions"][0]["recall"][0].update(value=1.5), r"R@1 is 1.5 .*expected shares"),
        (lambda data: data["directions"][0]["recall"][0].update(value=0.6), "no whole number of 4"),
        (lambda data: data["directions"][0].update(ranks=pack(np.ones(3))), "has 3 ranks, expected 4"),
        (
            lambda data: data["directions"][0].update(ranks="AAAA"),
            r"\.json: t2i: packed numbers cannot be read",
        ),
        (
            lambda data: data["directions"][0]["recall"][0].update(value=0.25, low=0.0),
            r"R@1 is 0\.25, expected 2 of 4 as its ranks say: the result was altered",
        ),
        (
            lambda data: data["set"].update(protocol="flickr30k", language=None),
            r"flickr30k has \d+ images, expected 1,000: the result was altered",
        ),
        (lambda data: data["set"].update(complete=False), "colours is called a part, expected a name with"),
        (lambda data: data["set"].update(protocol="x+partial"), r"x\+partial is called whole"),
    ],
)
def test_read_result_refuses_what_is_no_result(tmp_path, make_result, change, message):
    path = write_result(make_result(), tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        read_result(path)


def test_read_results_refuses_an_empty_place(tmp_path):
    with pytest.raises(ValueError, match=r"no results in .*llm2clip-eval run"):
        read_results([tmp_path])
    with pytest.raises(ValueError, match=r"no results in .*nowhere: no such file or folder; measure first"):
        read_results([tmp_path / "nowhere"])
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected an object"):
        read_results([tmp_path])
