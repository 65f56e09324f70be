"""Lists of images: CSV, TSV, JSON lines, plain paths, and paths from another command."""

import io
import json
import os

import pytest

from llm2clip.indexer import CorpusError, open_corpus
from llm2clip.indexer.corpora.list_file import StdinCorpus
from llm2clip.indexer.corpora.open import reopen_corpus

from .material import check_located, colour_of, encoded, put, records

IMAGES = [encoded(colour_of(number)) for number in range(4)]


@pytest.fixture
def folder(tmp_path):
    """Three images below ``d`` and one beside it."""
    names = ("d/a.png", "d/b c.png", "d/海/长城.png", "e.png")
    return put(tmp_path, dict(zip(names, IMAGES, strict=True))) / "d"


def about(corpus):
    return {record.key: (record.caption, record.metadata, record.problem) for record in corpus.records()}


def test_list_corpus_reads_csv_with_captions_and_metadata(folder, tmp_path):
    (folder / "list.csv").write_text(
        "title,Image,CAPTION,year,price,code\n"
        'one,a.png,"a dog, running",1999,2.50,007\n'
        "two,./海/长城.png,长城,,,12\n"
        'three,../e.png,"two\nlines",-3,1,1e5\n',
        "utf-8",
    )
    corpus = open_corpus(folder / "list.csv")
    assert about(corpus) == {
        "a.png": ("a dog, running", {"title": "one", "year": 1999, "price": 2.5, "code": "007"}, None),
        "海/长城.png": ("长城", {"title": "two", "code": "12"}, None),
        f"{tmp_path}/e.png": ("two\nlines", {"title": "three", "year": -3, "price": 1, "code": "1e5"}, None),
    }
    assert [record.read() for record in corpus.records()] == [IMAGES[0], IMAGES[2], IMAGES[3]]
    check_located(corpus)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_list_corpus_reads_separators_and_encodings(folder, mark, encoding):
    rows = [("file_name", "caption", "城市"), ("海/长城.png", "万里长城", "北京")]
    name = "l.tsv" if mark == "\t" else "l.csv"
    (folder / name).write_bytes("\r\n".join(mark.join(row) for row in rows).encode(encoding))
    corpus = open_corpus(folder / name)
    assert about(corpus) == {"海/长城.png": ("万里长城", {"城市": "北京"}, None)}
    note = f"{folder / name} is not UTF-8: it was read as GB 18030 (Chinese)"
    assert corpus.notes == ([note] if encoding == "gb18030" else [])


def test_list_corpus_reads_chinese_columns(folder):
    (folder / "l.csv").write_text("路径,说明,城市\n海/长城.png,万里长城,北京\n", "gb18030")
    assert about(open_corpus(folder / "l.csv")) == {"海/长城.png": ("万里长城", {"城市": "北京"}, None)}


def test_list_corpus_reads_json_lines(folder):
    lines = [
        {"file_name": "a.png", "text": "a dog", "tags": ["x"], "box": {"w": 1}},
        {"path": "b c.png", "captions": ["one", "two"]},
        {"caption": "of nothing"},
        [1, 2],
        {"path": 7, "caption": "\ud83e"},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n{broken\n"
    (folder / "l.jsonl").write_text(text)
    spec = str(folder / "l.jsonl")
    found = about(open_corpus(spec))
    assert found["a.png"] == ("a dog", {"tags": ["x"], "box": {"w": 1}}, None)
    assert found["b c.png"] == ("one", {"captions": ["one", "two"]}, None)
    problems = [problem for _, _, problem in found.values() if problem]
    assert problems[0].startswith("line 3: no field names the image file: expected one of file_name, ")
    assert problems[1] == "line 4: no usable JSON: expected an object, got list"
    assert problems[2] == "line 5: is not UTF-8"
    assert problems[3].startswith("line 7: no usable JSON: ")
    assert len(found) == 6


def test_list_corpus_joins_consecutive_captions_of_an_image(folder):
    (folder / "captions.txt.csv").write_text(
        "image,caption\na.png,one\na.png,two\nb c.png,three\na.png,four\n"
    )
    found = about(open_corpus(folder / "captions.txt.csv"))
    assert found == {
        "a.png": ("one", {"captions": ["one", "two"]}, None),
        "b c.png": ("three", None, None),
        "a.png@line 5": (None, None, "listed before"),
    }


def test_list_corpus_reports_unusable_rows(folder):
    (folder / "l.csv").write_text(
        "path,caption\na.png,one,more\n,nothing\ngone.png,x\n海,x\nl.csv,x\nf.heif.jxl,x\nb c.png,good\n",
        "utf-8",
    )
    spec = str(folder / "l.csv")
    corpus = open_corpus(spec)
    assert about(corpus) == {
        f"{spec}:2": (None, None, "line 2: got 3 columns, expected the 2 of the header"),
        f"{spec}:3": (None, None, "line 3: names no image"),
        "gone.png": (None, None, "No such file or directory"),
        "海": (None, None, "a folder, not an image"),
        "l.csv": (None, None, "its ending .csv is not that of an image"),
        "b c.png": ("good", None, None),
    }
    assert corpus.skipped == {".jxl": 1}


def test_list_corpus_reads_sidecars_of_a_plain_list(folder):
    (folder / "list.txt").write_text("a.png\r\n\r\nb c.png\n")
    (folder / "b c.txt").write_text("a caption")
    assert about(open_corpus(folder / "list.txt")) == {
        "a.png": (None, None, None),
        "b c.png": ("a caption", None, None),
    }


def test_list_corpus_stamps_captions(folder):
    def stamps(text):
        (folder / "l.csv").write_text(text)
        return [record.sidecars for record in open_corpus(folder / "l.csv").records(captions=False)]

    one = stamps("path,caption,n\na.png,one,1\nb c.png,two,2\n")
    two = stamps("path,caption,n\na.png,one,1\nb c.png,two!,2\n")
    three = stamps("path,caption,n\na.png,one,3\nb c.png,two,2\n")
    assert one[0] == two[0] != three[0]
    assert one[1] == three[1] != two[1]
    assert stamps("path\na.png\n") == [None]


@pytest.mark.parametrize("name", ["l.csv", "l.jsonl", "l.txt"])
def test_list_corpus_reports_lines_that_are_not_text(folder, name):
    lines = {
        "l.csv": [
            "path,caption",
            "a.png,长城长城长城长城长城",
            "b c.png,caf\udce9",
            "x\0y.png,z",
            "海/长城.png,",
        ],
        "l.jsonl": ['{"path": "a.png"}', '{"path": "b\udce9"}', '{"path": "\\u6d77/\\u957f\\u57ce.png"}'],
        "l.txt": ["a.png", "长城长城长城长城长城.png", "caf\udce9.png", "x\0y.png", "海/长城.png"],
    }[name]
    (folder / name).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    corpus = open_corpus(folder / name)
    found = list(corpus.records())
    assert [record.key for record in found if record.problem is None] == ["a.png", "海/长城.png"]
    assert len(found) == len(lines) - (name == "l.csv")
    assert corpus.notes == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.csv",
            b"",
            r"no column of .*l\.csv names the image files: got an empty line; expected one of",
        ),
        ("l.csv", b"who,what\nx,y\n", r"got who, what; expected one of file_name, "),
        ("l.txt", b"\xff\xff\xff\xff", "is neither UTF-8 nor UTF-16 nor GB 18030: save it as UTF-8"),
    ],
)
def test_list_corpus_refuses_other_files(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        open_corpus(folder / name)


@pytest.mark.parametrize("mark", [b"\n", b"\0", b"\r\n"])
def test_stdin_corpus_reads_paths(folder, tmp_path, monkeypatch, mark):
    monkeypatch.chdir(folder)
    names = ["a.png", "./海/长城.png", str(tmp_path / "e.png"), str(folder / "b c.png")]
    corpus = StdinCorpus(io.BytesIO(b"".join(os.fsencode(name) + mark for name in names)))
    keys = ["a.png", "海/长城.png", f"{tmp_path}/e.png", "b c.png"]
    for _ in range(2):
        assert [record.key for record in corpus.records()] == keys
    assert [record.read() for record in corpus.records()] == [IMAGES[n] for n in (0, 2, 3, 1)]
    assert corpus.identity() == {"kind": "stdin", "spec": "-", "root": str(folder)}


def test_stdin_corpus_reads_in_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{'长' * 40}/{number:07d}.png" for number in range(20_000)]
    corpus = StdinCorpus(io.BytesIO("\n".join(names).encode()))
    assert [record.key for record in corpus.records()] == names


def test_stdin_corpus_reports_names_that_are_not_utf8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [record] = StdinCorpus(io.BytesIO(b"caf\xe9.jpg\n")).records()
    assert (record.key, record.problem) == ("caf\\xe9.jpg", "file name is not UTF-8: rename it")


def test_stdin_corpus_refuses_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    with pytest.raises(
        CorpusError, match=r"got a terminal: find PHOTOS -name '\*\.jpg' \| llm2clip-index build - "
    ):
        open_corpus("-")


def test_explain_empty_of_lists(folder):
    (folder / "l.csv").write_text("path\n")
    listed, said = open_corpus(folder / "l.csv"), "got 0 lines, expected an image in each"
    assert StdinCorpus(io.BytesIO(b"\n")).explain_empty() == f"no images on standard input: {said}"
    assert listed.explain_empty() == f"no images in the list {folder / 'l.csv'}: {said}"


def test_reopen_corpus_opens_a_list_from_another_folder(folder, tmp_path, monkeypatch):
    (folder / "l.csv").write_text("path\na.png\n")
    monkeypatch.chdir(folder)
    identity = open_corpus("l.csv").identity()
    monkeypatch.chdir(tmp_path)
    again = reopen_corpus(identity)
    assert again.identity() == identity
    assert [record.read() for record in again.records()] == [IMAGES[0]]


def test_list_corpus_gives_each_column_one_type(folder):
    (folder / "l.csv").write_text(
        "file,id,zip,long,price,\n"
        "a.png,999999999999999998,02134,1,2,\n"
        "b c.png,1234567890123456789,10001,9223372036854775808,2.5,\n"
    )
    assert about(open_corpus(folder / "l.csv")) == {
        "a.png": (None, {"id": 999999999999999998, "zip": "02134", "long": "1", "price": 2}, None),
        "b c.png": (
            None,
            {"id": 1234567890123456789, "zip": "10001", "long": "9223372036854775808", "price": 2.5},
            None,
        ),
    }


def test_list_corpus_gives_long_integers_of_json_lines_one_type(folder):
    lines = [
        {"file": "a.png", "id": 7, "n": 7, "tags": [2**63, 1], "ok": True},
        {"file": "b c.png", "id": -(2**63) - 1, "n": 2**63 - 1, "ok": 2**64},
    ]
    (folder / "l.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "9" * 20 + "\n")
    found = about(open_corpus(folder / "l.jsonl"))
    assert found["a.png"][1] == {"id": "7", "n": 7, "tags": ["9223372036854775808", 1], "ok": True}
    assert found["b c.png"][1] == {"id": "-9223372036854775809", "n": 2**63 - 1, "ok": str(2**64)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", 'image,caption\na.png,one\na.png,"two, too"\n'),  # Flickr8k
        (
            "results.csv",
            "image_name| comment_number| comment\na.png| 0| one\na.png| 1| two, too\n",
        ),  # Flickr30k
        ("open_clip.csv", "filepath\ttitle\na.png\tone\na.png\ttwo, too\n"),
        ("excel.csv", "sep=;\r\nfile_name;caption\r\na.png;one\r\na.png;two, too\r\n"),
        ("commas.csv", 'file_name,caption\na.png,one,\na.png,"two, too",\n'),
        ("noted.csv", 'file_name,"caption\n(English)"\na.png,one\na.png,"two, too"\n'),
        ("quoted.csv", '"file\nname",caption,path\n,one,a.png\n,"two, too",a.png\n'),
    ],
)
def test_list_corpus_reads_captions_as_published(folder, name, content):
    (folder / name).write_text(content, newline="")
    ((key, (caption, metadata, problem)),) = about(open_corpus(folder / name)).items()
    assert (key, caption, metadata["captions"], problem) == ("a.png", "one", ["one", "two, too"], None)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_list_corpus_reads_utf16_without_a_mark(folder, encoding):
    (folder / "l.csv").write_bytes("file_name,caption\na.png,狗\n".encode(encoding))
    assert about(open_corpus(folder / "l.csv")) == {"a.png": ("狗", None, None)}


def test_list_corpus_refuses_a_header_without_end(folder):
    (folder / "l.csv").write_text("file_name," + "x" * 2**20)
    with pytest.raises(CorpusError, match=r"first line of .* has more than 1,048,576 characters"):
        open_corpus(folder / "l.csv")


def test_list_corpus_takes_a_list_of_paths_with_commas_for_paths(folder):
    (folder / "l.txt").write_text("a.png\nb, c.png\n")
    assert list(about(open_corpus(folder / "l.txt"))) == ["a.png", "b, c.png"]


def test_list_corpus_finds_files_whose_names_are_decomposed(tmp_path):
    put(tmp_path, {"cafe\u0301.png": encoded((1, 2, 3)), "cafe\u0301.txt": b"a coffee"})
    (tmp_path / "list.txt").write_text("caf\u00e9.png\n", "utf-8")
    [record] = records(tmp_path / "list.txt")
    assert (record.key, record.problem, record.caption) == ("cafe\u0301.png", None, "a coffee")


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_list_corpus_waits_for_no_pipe(tmp_path):
    put(tmp_path, {"a.png": encoded((1, 2, 3))})
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "list.lst").write_text("a.png\npipe.png\n/dev/zero\n")
    found = [(record.problem, record.note) for record in records(tmp_path / "list.lst")]
    assert found == [
        (None, "caption left out: not a regular file"),
        ("not a regular file", None),
        ("not a regular file", None),
    ]
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(CorpusError):
        records(tmp_path / "list.csv")


def test_list_corpus_reads_lines_of_limited_length(tmp_path):
    put(tmp_path, {"a.png": encoded((1, 2, 3))})
    long = "x" * 3 * 2**20
    (tmp_path / "list.jsonl").write_text(f'{{"file_name": "{long}"}}\n{{"file_name": "a.png"}}\n')
    (tmp_path / "list.csv").write_text(f"file_name,caption\na.png,{long}\na.png,ok\n")
    (tmp_path / "head.csv").write_text("," * 3 * 2**20 + "\n1\n")
    for name in ("list.jsonl", "list.csv"):
        bad, good = records(tmp_path / name)
        assert (bad.problem is not None, good.key, good.problem) == (True, "a.png", None)
    with pytest.raises(CorpusError, match=r"the first line of .* has more than 1,048,576 characters"):
        records(tmp_path / "head.csv")
