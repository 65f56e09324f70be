"""Golden case i: recall@k both ways, several captions per image, several images per caption, and ties."""

import re

import numpy as np
import pytest

from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.recall import Ties, Unmatched, found_share, retrieval_metrics

ATOL = 1e-6
DIRECTIONS = {"image_retrieval": "text_to_image", "text_retrieval": "image_to_text"}
KEY = re.compile(r"(image_retrieval|text_retrieval)_recall@(\d+)")


@pytest.fixture
def case(golden):
    return golden.case("i_retrieval")


@pytest.fixture
def sets(case):
    """Score matrix, embeddings and positives by name of the set."""
    inputs = {key: value.numpy() for key, value in case.tensors("inputs.safetensors").items()}
    found = {}
    for name in dict.fromkeys(key.split(".")[0] for key in inputs):
        own = {key.split(".")[1]: value for key, value in inputs.items() if key.split(".")[0] == name}
        pair = Embeddings(texts=own["text_embeddings"], images=own["image_embeddings"])
        positives = own.get("positive_pairs", own.get("text_to_image", np.arange(len(pair.texts))))
        found[name] = (own.get("scores"), pair, positives)
    tied = found["exact_ties"]
    found["all_equal"] = (np.full(tied[1].shape, 0.5, dtype=np.float32), None, tied[2])
    return found


def recalls(scores, positives, expected, *, unmatched=Unmatched.SKIP):
    """Our recalls under the keys of ``expected``, as {key: Recall}."""
    keys = {key: KEY.fullmatch(key) for key in expected}
    ks = sorted({int(match[2]) for match in keys.values() if match})
    result = retrieval_metrics(scores, positives=positives, ks=ks, unmatched=unmatched)
    return {
        key: getattr(result, DIRECTIONS[match[1]]).recall[int(match[2])]
        for key, match in keys.items()
        if match
    }


def test_retrieval_metrics_bounds_from_scores_and_embeddings(case, sets):
    compared = 0
    for name, content in case.json("expected.json").items():
        given = [one for one in sets[name][:2] if one is not None] if "bounds" in content else []
        for scores in given:
            ours = recalls(scores, sets[name][2], content["bounds"])
            for key, recall in ours.items():
                compared += 1
                bound = content["bounds"][key]
                for rule in ("pessimistic", "optimistic"):
                    label = f"{name} {key} {rule}"
                    case.check(label, getattr(recall, rule), bound[rule], atol=ATOL, rtol=0)
                assert recall.pessimistic <= recall.expected <= recall.optimistic
    assert compared


def test_retrieval_metrics_queries_in_the_denominator(case, sets):
    for name, content in case.json("expected.json").items():
        if "bounds" not in content:
            continue
        result = retrieval_metrics(sets[name][0], positives=sets[name][2], unmatched=Unmatched.SKIP)
        for key, bound in content["bounds"].items():
            direction = getattr(result, DIRECTIONS[KEY.fullmatch(key)[1]])
            case.exact(f"{name} {key} queries", direction.queries, bound["n_queries"])


def test_retrieval_metrics_equal_the_reference_programs(case, sets):
    """Equal where no scores tie; between our bounds where some do, because their order of ties is chance."""
    for name, content in case.json("expected.json").items():
        for source in content.keys() & {"clip_benchmark", "llm2clip_evaluate", "llm2clip_retrieval_global"}:
            pair, positives = sets[name][1:]
            for key, recall in recalls(pair, positives, content[source]).items():
                case.check(
                    f"{name} {source} {key}", recall.pessimistic, content[source][key], atol=ATOL, rtol=0
                )
        drawn = content.get("clip_benchmark_torch_topk_cpu", {})
        if drawn:
            for key, recall in recalls(sets[name][0], sets[name][2], drawn).items():
                assert recall.pessimistic - ATOL <= drawn[key] <= recall.optimistic + ATOL, key


def test_retrieval_metrics_leave_out_images_without_caption(case, sets):
    for name, content in case.json("expected.json").items():
        if "chinese_clip" not in content:
            continue
        result = retrieval_metrics(sets[name][0], positives=sets[name][2], unmatched=Unmatched.SKIP)
        for key, direction in DIRECTIONS.items():
            ours, theirs = getattr(result, direction), content["chinese_clip"][key]
            for k in (1, 5, 10):
                share, recall = theirs[f"r{k}"] / 100, ours.recall[k]
                assert recall.pessimistic - ATOL <= share <= recall.optimistic + ATOL, f"{name} {key} r{k}"
            if all(recall.pessimistic == recall.optimistic for recall in ours.recall.values()):
                label = f"{name} {key} mean recall"
                case.check(label, ours.mean_recall, theirs["mean_recall"] / 100, atol=ATOL, rtol=0)


def test_retrieval_metrics_count_images_without_caption_as_misses(case, sets):
    expected = case.json("expected.json")["one_to_many"]["clip_benchmark_functions_on_pair_matrix"]
    scores, _, positives = sets["one_to_many"]
    missed = recalls(scores, positives, expected, unmatched=Unmatched.MISS)
    for key, recall in missed.items():
        case.check(f"one_to_many {key}", recall.pessimistic, expected[key], atol=ATOL, rtol=0)
    skipped = recalls(scores, positives, expected, unmatched=Unmatched.SKIP)
    for key in (key for key in expected if key.startswith("text_retrieval")):
        assert skipped[key].pessimistic > missed[key].pessimistic + 1e-3


def test_found_share_is_another_metric(case, sets):
    expected = case.json("expected.json")["one_to_many"]["clip_benchmark_functions_on_pair_matrix"]
    scores, _, positives = sets["one_to_many"]
    hits = recalls(scores, positives, expected, unmatched=Unmatched.MISS)
    compared = 0
    for key, value in expected.items():
        if match := re.fullmatch(r"image_retrieval_true_recall@(\d+)", key):
            compared += 1
            share = found_share(scores, positives=positives, k=int(match[1])).mean()
            case.check(f"one_to_many {key}", share, value, atol=ATOL, rtol=0)
            assert hits[f"image_retrieval_recall@{match[1]}"].pessimistic > value + 1e-3
    assert compared


def test_retrieval_metrics_keep_unequal_caption_counts(case, sets):
    content = case.json("expected.json")["unequal_captions"]
    wrong = content["wrong_if_reshaped_to_5_per_image"]
    for key, recall in recalls(sets["unequal_captions"][0], sets["unequal_captions"][2], wrong).items():
        assert abs(recall.pessimistic - wrong[key]) > 0.05, key


def test_retrieval_metrics_ties_of_a_collapsed_model_count_as_misses(case, sets):
    scores, _, positives = sets["all_equal"]
    result = retrieval_metrics(scores, positives=positives, unmatched=Unmatched.SKIP)
    for direction in (result.text_to_image, result.image_to_text):
        for recall in direction.recall.values():
            assert [getattr(recall, rule.value) for rule in (Ties.PESSIMISTIC, Ties.OPTIMISTIC)] == [0, 1]
