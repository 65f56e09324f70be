"""The server under requests it does not expect, and while its index changes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from llm2clip.indexer import update_index

from .serving import COUNT, Served


def test_server_takes_up_generations_without_a_failed_request(served: Served, running: str):
    changes, stop, failed = 4, threading.Event(), list[str]()
    seen: list[set[int]] = []

    def ask(number: int) -> None:
        generations: set[int] = set()
        seen.append(generations)
        with httpx.Client(base_url=running, timeout=20) as client:
            turn = 0
            while not stop.is_set():
                turn += 1
                body = {
                    "query": f"red {number} {turn}",
                    "limit": 5,
                    "where": "key < 'z'" if turn % 2 else None,
                }
                answers = [client.post("/v1/search", json=body)]
                hits = answers[0].json().get("hits", [])
                answers += [client.get(f"/v1/items/{hits[0]['id']}/thumbnail")] if hits else []
                answers += [client.get("/v1/items?limit=3"), client.get("/v1/facets")]
                failed.extend(answer.text for answer in answers if answer.status_code != 200)
                generations.add(answers[0].json().get("generation", -1))

    def await_answers_from(generations: int) -> None:
        deadline = time.monotonic() + 60
        while len(set().union(*seen)) < generations and time.monotonic() < deadline:
            time.sleep(0.01)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    await_answers_from(1)
    for change in range(changes):
        Image.new("RGB", (20, 30), (change, 200, 9)).save(served.corpus / f"new-{change}.png")
        update_index(served.path, encoder=served.encoder)
        await_answers_from(change + 2)
    newest = httpx.get(f"{running}/readyz").json()
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert newest["images"] == COUNT + changes
    assert len(set().union(*seen)) == changes + 1, "no answer came from one of the generations"


@pytest.mark.filterwarnings("ignore")
def test_server_fails_at_no_request_that_its_schema_allows_or_refuses(running: str):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schema = schemathesis.openapi.from_url(f"{running}/openapi.json")
    cases = [
        operation.ok().as_strategy(generation_mode=mode)
        for operation in schema.get_all_operations()
        for mode in schemathesis.GenerationMode
    ]
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=250,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(cases))
    def asked(case: Any) -> None:
        answer = case.call()
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)

    asked()
    assert statuses[200] > 20, statuses
    assert statuses[400] > 20, statuses
