"""Languages, captions, tables, JSON and paths of answers."""

from __future__ import annotations

import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from llm2clip.indexer.containers.parquet import TABLES
from llm2clip.indexer.core.index_paths import split_key
from llm2clip.indexer.records.files import VIDEOS
from llm2clip.retrieval.output.results import (
    Answer,
    Query,
    answer_json,
    answer_paths,
    answer_table,
    caption_for,
    guess_language,
    image_name,
    text_query,
)

from .conftest import hit


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("两只猫在睡觉", "zh"),
        ("長い首の動物のえ", "ja"),
        ("カメラ", "ja"),
        ("고양이", "ko"),
        ("زرافة طويلة", "ar"),
        ("گربه‌ی سیاه", "fa"),
        ("чёрная кошка", "ru"),
        ("чорна кішка, їжак", "uk"),
        ("लंबी गर्दन वाला जानवर", "hi"),
        ("ยีราฟ", "th"),
        ("καμηλοπάρδαλη", "el"),
        ("a red bicycle", None),
        ("una bicicleta roja", None),
        ("un perro y un gato con el niño", "es"),
        ("ein Hund und eine Katze", "de"),
        ("le chien est sur la plage", "fr"),
        ("con chó trên bãi cỏ", "vi"),
        ("the Chinese word 猫 and what it means", "en"),
        ("🦒 42", None),
        ("", None),
    ],
)
def test_guess_language_by_script(text: str, language: str | None):
    assert guess_language(text) == language


def test_text_query_prefers_a_stated_language():
    assert text_query("猫", language="ja").language == "ja"
    assert text_query("猫").language == "zh"


def test_caption_for_prefers_the_language_of_the_query():
    names = hit(caption="giraffe", metadata={"names": {"en": "giraffe", "zh": "长颈鹿", "hi": "  "}})
    assert caption_for(names, "zh") == ("长颈鹿", "zh")
    assert caption_for(names, "hi") == ("giraffe", None)
    assert caption_for(names, "ar") == ("giraffe", None)
    assert caption_for(names, None) == ("giraffe", None)
    assert caption_for(hit(metadata={"captions": {"ja": "きりん"}}), "ja") == ("きりん", "ja")


@pytest.mark.parametrize("metadata", [{"names": "zh"}, {"names": {"zh": 3}}, {"captions": ["zh"]}, {}])
def test_caption_for_ignores_metadata_of_another_shape(metadata: dict[str, object]):
    assert caption_for(hit(caption="c", metadata=metadata), "zh") == ("c", None)


def printed(answer: Answer, *, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=False)
    console.print(answer_table(answer, width=width))
    return console.file.getvalue().splitlines()


def test_answer_table_shows_rank_score_image_and_caption():
    lines = printed(Answer(query=text_query("a red bicycle"), hits=[hit(1, caption="a bicycle"), hit(2)]))
    assert lines[0] == "a red bicycle"
    assert lines[1].split() == ["rank", "score", "image", "caption"]
    assert lines[2].split() == ["1", "0.625", "p1.png", "a", "bicycle"]
    assert lines[3].split() == ["2", "0.500", "p2.png"]


CAPTIONS = {
    "english": "a long description of what is to be seen, " * 9,
    "chinese": "一只长颈鹿站在红苹果旁边，" * 20,
    "arabic": "زرافة طويلة بجانب تفاحة حمراء " * 12,
    "hindi": "लंबी गर्दन वाला जानवर और लाल सेब " * 12,
    "emoji": "👩‍🚀🏳️‍🌈👨‍👩‍👧‍👦" * 30,
    "unbroken": "x" * 300,
}


@pytest.mark.parametrize("caption", CAPTIONS.values(), ids=CAPTIONS)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_answer_table_fits_the_terminal(caption: str, width: int):
    lines = printed(
        Answer(query=text_query(caption), hits=[hit(1, key="目录/" * 30 + "猫.jpg", caption=caption)]),
        width=width,
    )
    assert max(cell_len(line) for line in lines) <= width


def test_answer_table_aligns_columns_in_any_script():
    hits = [
        hit(1, key="猫/一.jpg", caption="两只猫"),
        hit(2, key="plain.jpg", caption="قطتان"),
        hit(3, caption="cats"),
    ]
    rows = printed(Answer(query=text_query("猫"), hits=hits))[2:5]
    starts = [
        cell_len(row[: row.index(text)]) for row, text in zip(rows, ("两只猫", "قطتان", "cats"), strict=True)
    ]
    assert len(set(starts)) == 1


def test_answer_table_caption_follows_the_query_language():
    giraffe = hit(1, caption="giraffe", metadata={"names": {"zh": "长颈鹿"}})
    assert "长颈鹿" in "\n".join(printed(Answer(query=text_query("脖子很长的动物"), hits=[giraffe])))
    assert "giraffe" in "\n".join(printed(Answer(query=text_query("long neck"), hits=[giraffe])))


def test_answer_table_shows_the_gloss():
    query = text_query("猫", gloss="Chinese: cat\x1b[0m")
    assert printed(Answer(query=query, hits=[]))[0] == r"猫  (Chinese: cat\x1b[0m)"


def test_answer_table_says_that_nothing_was_found():
    assert "nothing found" in printed(Answer(query=text_query("cat"), hits=[]))[1]


def test_answer_table_escapes_markup_and_control_sequences():
    hostile = hit(1, key="[red]x[/red].jpg", caption="[bold]not bold[/bold] \x1b[2J")
    text = "\n".join(printed(Answer(query=text_query("[link=http://x]q[/link]"), hits=[hostile])))
    assert "[red]x[/red].jpg" in text
    assert r"[bold]not bold[/bold] \x1b[2J" in text
    assert "[link=http://x]q[/link]" in text
    assert "\x1b" not in text


def test_image_name_keeps_the_end():
    assert image_name(hit(key="a/b/c.jpg"), cells=20) == "a/b/c.jpg"
    assert image_name(hit(key="a-long-folder/another-long-folder/c.jpg"), cells=20) == "…/c.jpg"
    short = image_name(hit(key="shard-000001.tar#" + "very" * 10 + "-long-name.webp"), cells=20)
    assert (short[0], short[-15:]) == ("…", "-long-name.webp")
    assert cell_len(short) <= 20


def test_image_name_of_a_file_may_hold_a_number_sign():
    assert image_name(hit(key="照片/两只猫#2.png"), cells=20) == "照片/两只猫#2.png"
    assert image_name(hit(key="a-long-folder/another/两只猫#2.png"), cells=20) == "…/两只猫#2.png"


@pytest.mark.parametrize("ending", sorted({".tar", ".zip"} | TABLES | VIDEOS))
def test_split_key_knows_every_container(ending: str):
    assert split_key(f"a#/b{ending}#c/d#1.jpg") == (f"a#/b{ending}", "c/d#1.jpg")
    assert split_key(f"a{ending}.d/e#1.jpg") == ("", f"a{ending}.d/e#1.jpg")


def test_answer_json_carries_everything():
    metadata = {"year": 2024, "names": {"zh": "长颈鹿"}}
    answer = Answer(query=text_query("长颈鹿"), hits=[hit(1, caption="giraffe", metadata=metadata)])
    line = answer_json(answer)
    assert "\n" not in line
    assert "长颈鹿" in line
    assert json.loads(line) == {
        "query": "长颈鹿",
        "kind": "text",
        "language": "zh",
        "hits": [
            {
                "rank": 1,
                "score": 0.625,
                "confidence": None,
                "id": 1,
                "key": "p1.png",
                "uri": "s3://images/p1.png",
                "caption": "giraffe",
                "width": 640,
                "height": 480,
                "metadata": metadata,
                "time": None,
                "time_source": None,
                "missing": False,
                "duplicates": [],
            }
        ],
        "total": None,
        "cursor": None,
        "notes": [],
    }
    assert json.loads(answer_json(answer, ascii_only=True)) == json.loads(line)
    assert answer_json(answer, ascii_only=True).isascii()


def test_answer_json_escapes_a_name_that_is_not_utf8():
    answer = Answer(query=Query(kind="image", label="x\udce9.jpg"), hits=[hit(1, key="caf\udce9.jpg")])
    line = answer_json(answer).encode("utf-8")
    assert json.loads(line)["hits"][0]["key"] == "caf\udce9.jpg"


def test_answer_paths_are_the_uris():
    assert list(answer_paths(Answer(query=text_query("q"), hits=[hit(1), hit(2, uri="/s.tar#m.webp")]))) == [
        "s3://images/p1.png",
        "/s.tar#m.webp",
    ]


def test_answer_table_shows_the_day_of_capture_where_it_is_known():
    taken = hit(1, time="2019-05-04T23:30:15+10:00", time_source="exif")
    changed = hit(2, time="2024-03-01T12:00:00Z", time_source="file")
    text = "\n".join(printed(Answer(query=text_query("q"), hits=[taken, changed])))
    assert "taken" in text
    assert "2019-05-04" in text
    assert "2024" not in text
    assert "taken" not in "\n".join(printed(Answer(query=text_query("q"), hits=[changed])))


def test_answer_table_shows_folders_where_names_are_the_same():
    long = "photographs/of-many-years/"
    keys = (f"{long}2019/05/IMG_1.jpg", f"{long}2020/05/IMG_1.jpg", f"{long}2020/05/IMG_2.jpg")
    hits = [hit(rank, key=key, caption="c") for rank, key in enumerate(keys, start=1)]
    rows = printed(Answer(query=text_query("q"), hits=hits), width=60)[2:]
    assert [row.split() for row in rows[:5]] == [
        ["1", "0.625", "…/IMG_1.jpg", "c"],
        ["2019/05/"],
        ["2", "0.500", "…/IMG_1.jpg", "c"],
        ["2020/05/"],
        ["3", "0.375", "…/IMG_2.jpg", "c"],
    ]


def test_answer_table_tells_indexes_and_containers_apart():
    both = [hit(1, key="a.jpg", index="home"), hit(2, key="a.jpg", index="work")]
    rows = printed(Answer(query=text_query("q"), hits=both))
    assert [row.strip() for row in rows[3:6:2]] == ["home/", "work/"]
    name = "x" * 24 + ".webp"
    shards = [hit(1, key=f"shards-{'0' * 20}-1.tar#{name}"), hit(2, key=f"shards-{'0' * 20}-2.tar#{name}")]
    lines = printed(Answer(query=text_query("q"), hits=shards), width=60)
    assert max(map(cell_len, lines)) <= 60
    assert [row.strip() for row in lines[3:6:2]] == ["…-1.tar/", "…-2.tar/"]


def test_answer_table_has_room_for_everything_in_60_columns():
    hits = [
        hit(rank, key=f"photographs/{year}-a-long-holiday/IMG_1.jpg", caption="a quiet beach", confidence=0.9,
            time=f"{year}-05-04T00:00:00Z", time_source="exif")
        for rank, year in ((1, 2019), (2, 2020))
    ]  # fmt: skip
    lines = printed(Answer(query=text_query("q"), hits=hits), width=60)
    assert max(map(cell_len, lines)) <= 60
    assert [line.split() for line in lines[2:6]] == [
        ["1", "0.625", "90%", "…/IMG_1.jpg", "2019-05-04", "a", "quiet"],
        ["2019-a-long…", "beach"],
        ["2", "0.500", "90%", "…/IMG_1.jpg", "2020-05-04", "a", "quiet"],
        ["2020-a-long…", "beach"],
    ]


def test_answer_table_says_which_hit_is_shown():
    answer = Answer(query=text_query("red"), hits=[hit()], total=180, cursor="x")
    assert "  1 of 180; more with --page 2" in printed(answer)
