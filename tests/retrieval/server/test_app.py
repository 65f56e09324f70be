"""The HTTP API over an index of coloured images, against brute force and the official clients."""

from __future__ import annotations

import asyncio
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from llm2clip.indexer import update_index
from llm2clip.retrieval import Searcher
from llm2clip.retrieval.ranking.options import SearchOptions
from llm2clip.retrieval.service.search_service import SearchService

from .serving import COUNT, Served, SlowEncoder, data_uri, keys


def test_search_equals_brute_force_for_texts_images_and_sums(served: Served):
    red, green = served.encoder.encode_texts(["red", "green"])
    file = served.corpus / "07.png"
    seven = served.encoder.encode_images([file])[0]
    assert keys(served.search(query="red", limit=9)) == served.ranked(red)[:9]
    assert keys(served.search(image=data_uri(file), limit=9)) == served.ranked(seven)[:9]
    assert keys(served.search(query="red", image=data_uri(file), limit=9)) == served.ranked(red + seven)[:9]
    asked = served.search(query='2*"red" - "green" + image:p', images={"p": data_uri(file)}, limit=9)
    assert keys(asked) == served.ranked(2 * red - green + seven)[:9]
    assert keys(served.search(vector=red.tolist(), limit=9)) == served.ranked(red)[:9]
    wide = served.search(query="ｒｅｄ", images={"写真（１）": data_uri(file)}, limit=9)
    assert keys(wide) == served.ranked(red)[:9]
    named = served.search(query='image:"写真（１）"', images={"写真（１）": data_uri(file)}, limit=9)
    assert keys(named) == served.ranked(seven)[:9]


def test_search_notes_languages_that_the_encoder_was_not_trained_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.search(query="一只狗")["notes"] == []
    info = replace(served.encoder.info, name="clip-vit-b-32", languages=("en",))
    monkeypatch.setattr(SlowEncoder, "info", info)
    answer = served.search(query='"一只狗" + "草地" - "red"')
    [note] = answer["notes"]
    assert answer["language"] == "zh"
    assert "looks Chinese, and clip-vit-b-32 was trained on English" in note
    assert served.search(query="the dog and the cat")["notes"] == []


def test_search_by_item_finds_images_like_it(served: Served):
    item = next(hit for hit in served.search(query="x", limit=COUNT)["hits"] if hit["key"] == "11.png")
    found = served.search(query=f"item:{item['id']}", limit=5)
    assert keys(found) == served.ranked(served.encoder.encode_images([served.corpus / "11.png"])[0])[:5]
    assert served.ask("POST", "/v1/search", json={"query": "item:999"}).status_code == 404


def test_search_turns_pages_to_the_end(served: Served):
    async def test(client: httpx.AsyncClient, service: SearchService) -> list[str]:
        found: list[str] = []
        cursor = None
        for _ in range(20):
            body = {"query": "red", "limit": 7, "cursor": cursor, "where": "key > '05'", "fold": False}
            answer = (await client.post("/v1/search", json=body)).json()
            assert answer["total"] == COUNT - 5
            assert [hit["rank"] for hit in answer["hits"]] == [
                len(found) + n + 1 for n in range(len(answer["hits"]))
            ]
            found += keys(answer)
            if (cursor := answer["next_cursor"]) is None:
                return found
        raise AssertionError("the pages do not end")

    red = served.encoder.encode_texts(["red"])[0]
    assert served.run(test) == [key for key in served.ranked(red) if key > "05"]


ASKED = ({}, {"sort": "date"}, {"diverse": True}, {"min_confidence": 0.3}, {"where": "key < '2'"})


def test_search_gives_the_hits_of_the_searcher(served: Served):
    """Confidences, folded copies, order by date and cut-off are the same as in Python."""

    async def test(client: httpx.AsyncClient, service: SearchService) -> list[dict[str, Any]]:
        await asyncio.to_thread(service.calibrate)
        bodies = [{"query": "red", "limit": 6, **asked} for asked in ASKED]
        return [(await client.post("/v1/search", json=body)).json() for body in bodies]

    answers = served.run(test)
    with Searcher.open(served.path, encoder=served.encoder) as searcher:
        for asked, answer in zip(ASKED, answers, strict=True):
            expected = searcher.find("red", options=SearchOptions(k=6, **asked))
            assert keys(answer) == [hit.key for hit in expected.hits], asked
            assert [hit["confidence"] for hit in answer["hits"]] == [hit.confidence for hit in expected.hits]
            copies = [[copy["key"] for copy in hit["duplicates"]] for hit in answer["hits"]]
            assert copies == [[copy.key for copy in hit.duplicates] for hit in expected.hits]
            assert (answer["total"], answer["notes"]) == (expected.total, list(expected.notes))


def test_search_leaves_out_low_scores(served: Served):
    whole = served.search(query="red", limit=COUNT)["hits"]
    least = whole[9]["score"]
    assert keys(served.search(query="red", limit=COUNT, min_score=least)) == [
        hit["key"] for hit in whole if hit["score"] >= least
    ]
    assert served.search(query="red", min_score=1)["hits"] == []


@pytest.mark.parametrize(
    ("request_", "status", "problem"),
    [
        ({}, 400, "one of query, image and vector"),
        ({"query": "x", "limit": 0}, 400, "limit"),
        ({"query": "x", "wher": "y"}, 400, "wher"),
        ({"query": "x", "where": "time >"}, 400, "filter, at character"),
        ({"query": '"x'}, 400, "quote is not closed"),
        ({"query": "  "}, 400, "empty"),
        ({"query": "\ud800"}, 400, "unicode"),
        ({"query": '"a" + image:/etc/passwd'}, 400, "no image called '/etc/passwd' was sent"),
        ({"image": "data:image/png;base64,AAAA"}, 400, "image"),
        ({"image": "data:image/png;base64,%%%"}, 400, "base64"),
        ({"image": "http://example.org/a.png"}, 400, "image"),
        ({"vector": [0.0] * 16}, 400, "finite length above 0"),
        ({"vector": [1.0]}, 400, "shape"),
        ({"query": "x", "cursor": "abc"}, 400, "cursor"),
        ({"query": "x", "min_score": 7}, 400, "min_score"),
        ({"query": "item:1", "min_confidence": 0.5}, 400, "only for queries of texts"),
        ({"query": "x", "sort": "date", "diverse": True}, 400, "exclude each other"),
    ],
)
def test_search_says_what_is_wrong(served: Served, request_: dict[str, Any], status: int, problem: str):

    body = json.dumps(request_)
    response = served.ask("POST", "/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert problem in response.json()["error"]["message"]


def test_items_give_image_thumbnail_and_metadata(served: Served):
    hit = served.search(query="red", limit=1)["hits"][0]
    path = f"/v1/items/{hit['id']}"
    known = served.ask("GET", path).json()
    assert known == {name: hit[name] for name in hit if name in known}
    assert set(hit) - set(known) == {"rank", "score", "confidence", "duplicates"}
    original = served.ask("GET", f"{path}/image")
    assert original.content == (served.corpus / hit["key"]).read_bytes()
    assert original.headers["content-type"] == "image/png"
    assert "sandbox" in original.headers["content-security-policy"]
    small = served.ask("GET", f"{path}/thumbnail?size=100")
    with Image.open(io.BytesIO(small.content)) as opened:
        assert (opened.format, opened.size) == ("WEBP", (30, 20))
    (served.corpus / hit["key"]).unlink()
    lost = served.ask("GET", f"{path}/image")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "image_lost")
    assert str(served.corpus) not in lost.text


def test_items_list_every_image_the_newest_first(served: Served):
    for number in range(COUNT):
        os.utime(served.corpus / f"{number:02}.png", (1e9 + number % 7, 1e9 + number % 7))
    update_index(served.path, encoder=served.encoder)

    async def test(client: httpx.AsyncClient, service: SearchService) -> list[str]:
        found: list[str] = []
        cursor: dict[str, str] = {}
        for _ in range(9):
            answer = (await client.get("/v1/items", params={"limit": 9, **cursor})).json()
            assert answer["total"] == COUNT
            found += [item["key"] for item in answer["items"]]
            if answer["next_cursor"] is None:
                return found
            cursor = {"cursor": answer["next_cursor"]}
        raise AssertionError("the pages do not end")

    by_time = sorted(range(COUNT), key=lambda number: -(number % 7))
    assert served.run(test) == [f"{number:02}.png" for number in by_time]


def test_facets_count_images_that_pass_the_filter(served: Served):
    found = served.ask("GET", "/v1/facets", params={"where": "key < '10'"}).json()
    assert [(facet["value"], facet["count"]) for facet in found["types"]] == [("png", 10)]
    assert served.ask("GET", "/v1/facets", params={"where": "key <"}).status_code == 400


def test_items_that_are_removed_or_unknown_are_not_found(served: Served):
    for path in ("/v1/items/40", "/v1/items/999/image", "/v1/items/999/thumbnail"):
        assert served.ask("GET", path).status_code == 404
    for path in ("/v1/items/-1", "/v1/items/x", "/v1/items/99999999999999999999"):
        assert served.ask("GET", path).status_code == 400
    removed = next(
        hit["id"] for hit in served.search(query="x", limit=COUNT)["hits"] if hit["key"] == "11.png"
    )
    (served.corpus / "11.png").unlink()
    update_index(served.path, encoder=served.encoder)
    for path in (f"/v1/items/{removed}", f"/v1/items/{removed}/image"):
        assert served.ask("GET", path).status_code == 404
    assert served.ask("POST", "/v1/search", json={"query": f"item:{removed}"}).status_code == 404


def test_service_takes_up_a_new_generation_while_an_old_one_is_used(served: Served):
    async def test(client: httpx.AsyncClient, service: SearchService) -> None:
        first = (await client.get("/readyz")).json()
        with service.index() as old:
            Image.new("RGB", (30, 20), "red").save(served.corpus / "new.png")
            await asyncio.to_thread(update_index, served.path, encoder=served.encoder)
            answer = (await client.post("/v1/search", json={"query": "red", "limit": 1})).json()
            assert (keys(answer), answer["generation"]) == (["new.png"], first["generation"] + 1)
            assert len(old.search(served.encoder.encode_texts(["red"]), k=100)[0]) == COUNT
        assert (await client.get("/readyz")).json()["images"] == COUNT + 1

    served.run(test)


def test_search_answers_429_when_too_many_wait(tmp_path: Path):
    served = Served(tmp_path, max_batch=1, max_queue=2)

    async def test(client: httpx.AsyncClient, service: SearchService) -> list[httpx.Response]:
        served.encoder.go.clear()
        asked = [
            asyncio.create_task(client.post("/v1/search", json={"query": f"red {n}", "limit": 1}))
            for n in range(8)
        ]
        await asyncio.sleep(0.3)
        served.encoder.go.set()
        return list(await asyncio.gather(*asked))

    found = served.run(test)
    statuses = [response.status_code for response in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) in (
        2,
        3,
    )  # those in the queue, and the one that is encoded if it was taken out before
    refused = next(response for response in found if response.status_code == 429)
    assert (refused.headers["retry-after"], refused.json()["error"]["code"]) == ("1", "overloaded")


def test_search_vectors_are_the_same_alone_and_in_a_batch(served: Served):
    texts = [f"query number {number}" for number in range(20)]

    async def test(client: httpx.AsyncClient, service: SearchService) -> list[NDArray[np.float32]]:
        return list(await asyncio.gather(*(service.embedded("text", text) for text in texts)))

    together = served.run(test)
    assert max(served.encoder.text_batches) > 1
    assert np.array_equal(together, np.stack([served.encoder.encode_texts([text])[0] for text in texts]))


def test_metrics_count_what_happened(served: Served):
    async def test(client: httpx.AsyncClient, service: SearchService) -> str:
        for query in ("red", "red", "blue"):
            await client.post("/v1/search", json={"query": query})
        await client.get("/v1/items/999")
        await client.get("/readyz", headers={"host": "evil.example"})
        return (await client.get("/metrics")).text

    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(served.run(test))
        for sample in family.samples
    }
    assert samples["llm2clip_query_cache_hits_total",] == 1
    assert samples["llm2clip_query_cache_misses_total",] == 2
    assert samples["llm2clip_index_images",] == COUNT
    assert samples["llm2clip_rejected_total", ("reason", "unknown_host")] == 1
    assert samples["llm2clip_request_seconds_count", ("route", "/v1/search"), ("status", "200")] == 3
    assert samples["llm2clip_request_seconds_count", ("route", "/v1/items/{item}"), ("status", "404")] == 1
    assert samples["llm2clip_batch_size_sum", ("kind", "text")] == 2


def test_embeddings_answer_the_official_client(served: Served, running: str):
    with openai.OpenAI(base_url=f"{running}/v1", api_key="unused", max_retries=0) as client:
        texts = [f"red {number}" for number in range(600)]  # more than may wait at once
        found = client.embeddings.create(model="any", input=texts)
        expected = served.encoder.encode_texts(texts)
        assert np.array_equal([row.embedding for row in found.data], expected)
        assert (found.usage.prompt_tokens, found.model) == (1200, "fake")
        image = served.corpus / "03.png"
        short = client.embeddings.create(
            model="any", input=data_uri(image), dimensions=4, encoding_format="float"
        )
        head = served.encoder.encode_images([image])[0][:4]
        assert short.data[0].embedding == pytest.approx((head / np.linalg.norm(head)).tolist(), abs=1e-6)
        assert [model.id for model in client.models.list()] == ["fake"]
        with pytest.raises(openai.BadRequestError, match="dimensions must be at most 16"):
            client.embeddings.create(model="any", input="x", dimensions=17)


def test_page_asks_no_other_host(running: str):
    for path in ("/", "/page/main.js", "/page/api.js", "/page/page.css", "/page/icon.svg"):
        response = httpx.get(running + path)
        assert response.status_code == 200
        assert "http://" not in response.text.replace("http://www.w3.org", "")
        assert "https://" not in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]
    assert httpx.get(running + "/openapi.json").json()["info"]["title"] == "llm2clip"
