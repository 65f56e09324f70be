"""Filters that are not valid: what is said, and of which characters."""

import pytest

from llm2clip.indexer.filters.compile import WhereError, compile_where


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", (0, 0), "the filter is empty"),
        ("widht > 3", (0, 5), "no field 'widht'; did you mean 'width'? Fields: key, path, time, size"),
        ("author = 'x'", (0, 6), "for metadata write meta.author"),
        ("width > 'wide'", (8, 14), "width is compared with a number, got text"),
        ("caption = 3", (10, 11), "caption is compared with text, got a number"),
        ("caption = dog", (10, 13), "no field 'dog'"),
        ("caption LIKE dog", (13, 16), "expected text in single quotes after LIKE, got 'dog'; write 'dog'"),
        ('caption LIKE "狗%"', (13, 17), "after LIKE, got a name; write '狗%'"),
        ("width ＞ 100", (6, 7), "expected '>', got '＞', which is a look-alike character"),
        ("width IN (1，2)", (11, 12), "expected ',', got '，'"),
        ("width > 3 AND", (13, 13), "expected a field, got the end"),
        ("width 3", (6, 7), "expected a comparison: ="),
        ("width BETWEN 3", (6, 12), "did you mean 'between'?"),
        ("width > 3 height", (10, 16), "expected AND, OR or the end"),
        ("(width > 3", (10, 10), "expected ) to close the parenthesis"),
        ("width > 3)", (9, 10), "expected AND, OR or the end"),
        ("width > 3 && height > 3", (10, 11), "expected AND, OR or NOT in words, got &"),
        ("key = 'abc", (6, 10), "the quote ' is never closed"),
        ("key = “abc”", (6, 7), "expected a straight quote ', got “"),
        ("width > 3; DROP TABLE items", (9, 10), "';' has no meaning in a filter"),
        ("width > 3 -- more", (10, 11), "'-' has no meaning"),
        ("time > 'yesterday'", (7, 18), "time is compared with a time in quotes such as '2024'"),
        ("time > '2024-13'", (7, 16), "time is compared with a time"),
        ("time > '2024-02-30'", (7, 19), "time is compared with a time"),
        ("time > 2024", (7, 11), "time is compared with a time in quotes"),
        ("time LIKE '2024%'", (5, 9), "LIKE compares text, but time is a time"),
        ("width > 3MB", (8, 11), "no unit 'mb' for width"),
        ("size > 3parsec", (7, 14), "no unit 'parsec' for size"),
        ("caption = NULL", (10, 14), "NULL cannot be compared: write IS NULL"),
        ("meta = 'x'", (5, 6), "expected a dot and a name after meta"),
        ("meta.tags[x] = 1", (10, 11), "expected a list index"),
        ('meta."a""b" = 1', (0, 11), "a metadata name without quotes"),
        ("meta.a > TRUE", (0, 13), "TRUE and FALSE have no order"),
        ("width > caption", (0, 15), "width is a number and caption is text"),
        ("caption HAS 'x'", (8, 11), "HAS tests lists in the metadata"),
        ("key LIKE 'x\\'", (9, 13), "ends in a backslash that escapes nothing"),
        ("key GLOB 'a[b-c'", (9, 16), "the [ at character 2 of the pattern is never closed by ]"),
        ("width > 1e999", (8, 13), "a number of at most 1e308"),
        ("width IN ()", (10, 11), "width is compared with a number, got ')'"),
        ("width = 3 = 3", (10, 11), "expected AND, OR or the end"),
        ("'a' AND width > 3", (0, 3), "expected a field here"),
        ("NOT NULL", (4, 8), "expected a field, got 'NULL'"),
    ],
)  # fmt: skip
def test_where_error_points_at_the_position(text, place, message):
    with pytest.raises(WhereError) as caught:
        compile_where(text)
    assert message in str(caught.value)
    assert (caught.value.start, caught.value.end) == place
    assert f"at character {place[0] + 1}:" in str(caught.value)
    assert ">>" + text[place[0] : place[1]] + "<<" in str(caught.value)
    below = caught.value.pointer().split("\n")[1]
    assert (below.index("^"), len(below)) == (place[0], max(place[1], place[0] + 1))


def test_where_error_shows_an_excerpt_of_a_long_filter():
    text = "width > 1 AND " * 30 + "widht > 3" + " AND width > 1" * 30
    with pytest.raises(WhereError) as caught:
        compile_where(text)
    shown = str(caught.value).rpartition("Here: ")[2]
    assert ">>widht<<" in shown
    assert shown.startswith("...")
    assert shown.endswith("...")
    assert len(shown) < 80
