"""What a query says, such as ``"2*beach at sunset" - "people" + image:photo.jpg``, and in which language.

Grammar (docs/searching.md)::

    expression = [sign] term {sign term}
    sign       = "+" | "-"                        alone between spaces
    term       = [number "*"] (text | image | item)
    text       = '"' ... '"' | words              a quote or backslash within quotes follows a backslash
    image      = "image:" name                    up to the next sign; in quotes if it holds one
    item       = "item:" number                   an image of the index, by its id

A query is an expression only if its first term has a quote, a weight, ``image:`` or ``item:``. Everything else is plain
text, whatever signs it holds, so that a sentence with a dash or a plus is searched as it stands.

Scripts of one language tell it: Han, kana, Hangul, Thai, ... Of languages in Latin script only some are told, by their
frequent words and by letters that others lack; a single noun mostly tells nothing.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders import EncoderInfo

MOST_TERMS = 32
"""Most terms of an expression."""
MOST_WEIGHT = 100.0
"""Largest weight of a term."""

_SHOWN = 24
_WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\*\s*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPERAND = re.compile(r"(image|item):")
_SIGN = re.compile(r"([+-])(?=\s|$)")
_NEXT = re.compile(r"\s[+-](?=\s|$)")
_EXPLICIT = re.compile(r'\s*(?:[+-]\s+)?(?:(?:\d+(?:\.\d*)?|\.\d+)\*\s*\S|"|(?:image|item):)')


class ExpressionError(ValueError):
    """A query expression is invalid; the message points at the column."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a query."""

    kind: Literal["text", "image", "item"]
    """What ``value`` is: a text, the name of an image, or the id of an image in the index."""
    value: str
    """The text, name or id."""
    weight: float = 1.0
    """Factor on its unit vector; negative for what is to be absent."""


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query; a query that is no expression is one text.

    Raises:
        ExpressionError: It begins like an expression and is not one.
    """
    if not _EXPLICIT.match(query):
        return (Term(kind="text", value=query),)
    return _Parser(query).terms()


def join(arguments: Sequence[str]) -> str:
    """One query from the words of a command line, in which ``+`` and ``-`` alone are signs of an expression."""
    if not any(word in ("+", "-") for word in arguments):
        return " ".join(arguments)
    terms: list[str] = []
    words: list[str] = []
    for word in (*arguments, "+"):
        if word in ("+", "-"):
            if words:
                terms.append(_spelt(" ".join(words)))
            words = []
            terms.append(word)
        else:
            words.append(word)
    return " ".join(terms[:-1])


def weighted_sum(vectors: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """The sum of unit vectors, each times its weight, scaled to unit length. Shape: (n, dim) -> (dim,), float32.

    Raises:
        ExpressionError: They cancel out.
        ValueError: There are not as many weights as vectors.
    """
    import numpy as np

    if len(weights) != len(vectors):
        raise ValueError(f"expected a weight for each of {len(vectors)} texts and images, got {len(weights)}")
    if len(vectors) == 1 and weights[0] > 0:
        one: NDArray[np.float32] = vectors[0]
        return one
    total = np.asarray(weights, dtype=np.float64) @ vectors.astype(np.float64)
    length = float(np.linalg.norm(total))
    if not length > 1e-6 * sum(map(abs, weights)):
        raise ExpressionError(
            "the terms of the query cancel out, so nothing is left to search for; change a weight"
        )
    unit: NDArray[np.float32] = (total / length).astype(np.float32)
    return unit


def _spelt(text: str) -> str:
    """A term as it stands where it says what it is, else as a quoted text."""
    if _EXPLICIT.match(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Parser:
    def __init__(self, query: str) -> None:
        self._query, self._at = query, 0

    def terms(self) -> tuple[Term, ...]:
        found = []
        self._skip()
        sign = self._sign() or "+"
        while True:
            found.append(self._term(-1.0 if sign == "-" else 1.0))
            if len(found) > MOST_TERMS:
                raise self._error(f"a query has at most {MOST_TERMS} terms")
            self._skip()
            if self._at == len(self._query):
                return tuple(found)
            next_sign = self._sign()
            if next_sign is None:
                raise self._error("expected + or - between spaces before the next term")
            sign = next_sign

    def _skip(self) -> None:
        while self._at < len(self._query) and self._query[self._at].isspace():
            self._at += 1

    def _sign(self) -> str | None:
        match = _SIGN.match(self._query, self._at)
        if match is None:
            return None
        self._at = match.end()
        self._skip()
        return match[1]

    def _term(self, sign: float) -> Term:
        weight, start = 1.0, self._at
        if match := _WEIGHT.match(self._query, self._at):
            self._at = match.end()
            weight = float(match[1])
            if not 0 < weight <= MOST_WEIGHT or not math.isfinite(weight):
                self._at = start
                raise self._error(
                    f"a weight must be above 0 and at most {MOST_WEIGHT:g}, got {match[1][:20]}"
                )
        kind: Literal["text", "image", "item"] = "text"
        if operand := _OPERAND.match(self._query, self._at):
            kind = "image" if operand[1] == "image" else "item"
            self._at = operand.end()
        begun = self._at
        value = self._value()
        if not value:
            self._at = begun
            raise self._error(f"expected {'a text' if kind == 'text' else 'a name after ' + kind + ':'}")
        if kind == "item" and not re.fullmatch(r"\d{1,18}", value, re.ASCII):
            self._at = begun
            raise self._error(f"item: expects the id of an image, a number, got {value[:40]!r}")
        return Term(kind=kind, value=value, weight=sign * weight)

    def _value(self) -> str:
        if self._query.startswith('"', self._at):
            match = _QUOTED.match(self._query, self._at)
            if match is None:
                raise self._error("this quote is not closed")
            self._at = match.end()
            return re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL).strip()
        if _SIGN.match(self._query, self._at):
            return ""
        match = _NEXT.search(self._query, self._at)
        end = match.start() if match else len(self._query)
        value = self._query[self._at : end].strip()
        if '"' in value:
            self._at += self._query[self._at : end].index('"')
            raise self._error(
                "a quote within words; put the whole text in quotes, and \\ before a quote in it"
            )
        self._at = end
        return value

    def _error(self, problem: str) -> ExpressionError:
        before, here = self._query[max(0, self._at - _SHOWN) : self._at], self._query[self._at :][:_SHOWN]
        return ExpressionError(f"query, at character {self._at + 1}: {problem}. Here: {before}>>{here}<<")


# First and last code point of a script, and the language most often written in it. Scripts of many languages, such
# as Latin, are left out.
_SCRIPTS: tuple[tuple[int, int, str], ...] = (
    (0x0370, 0x03FF, "el"),
    (0x0400, 0x04FF, "ru"),
    (0x0530, 0x058F, "hy"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "ar"),
    (0x0900, 0x097F, "hi"),
    (0x0980, 0x09FF, "bn"),
    (0x0A00, 0x0A7F, "pa"),
    (0x0A80, 0x0AFF, "gu"),
    (0x0B80, 0x0BFF, "ta"),
    (0x0C00, 0x0C7F, "te"),
    (0x0C80, 0x0CFF, "kn"),
    (0x0D00, 0x0D7F, "ml"),
    (0x0D80, 0x0DFF, "si"),
    (0x0E00, 0x0E7F, "th"),
    (0x10A0, 0x10FF, "ka"),
    (0x1200, 0x137F, "am"),
    (0x1780, 0x17FF, "km"),
    (0x3040, 0x30FF, "ja"),
    (0x4E00, 0x9FFF, "zh"),
    (0xAC00, 0xD7AF, "ko"),
)
# Letters that tell another language from the main one of its script.
_TELLTALES: dict[str, tuple[frozenset[str], str]] = {
    "ar": (frozenset("پچژگک"), "fa"),
    "ru": (frozenset("іїєґІЇЄҐ"), "uk"),
}
_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and with is are this that for from at his her dog cat man woman red blue green two",
        "de": "der die das dem den des ein eine einen einem und mit auf ist im am von zwei hund katze frau mann",
        "es": "el los las una con del y para por está hombre mujer perro gato niño niña rojo sobre que",
        "fr": "le les des une dans avec sur et du est au aux homme femme chien chat deux qui rouge sous",
        "it": "il gli una che di nel della e è uno cane gatto uomo donna sul due rosso con",
        "pt": "o os uma do da em no na e com um não cachorro gato homem mulher duas vermelho",
        "nl": "de het een en met van op is twee hond kat vrouw naast",
        "pl": "i w z na pies kot kobieta mężczyzna czerwony dwa jest obok",
        "tr": "bir ve ile bu için köpek kedi kadın adam kırmızı iki",
        "vi": "một và trên với của con người chó mèo",
        "id": "yang dan di dengan seekor sebuah orang anjing kucing merah",
        "sv": "och en ett på med är som hund katt kvinna två",
    }.items()
}
"""Frequent words of a language, in lower case."""
_LETTERS: dict[str, frozenset[str]] = {
    "de": frozenset("ß"),
    "es": frozenset("ñ¿¡"),
    "pt": frozenset("ãõ"),
    "fr": frozenset("œ"),
    "pl": frozenset("łąęśźż"),
    "cs": frozenset("řěů"),
    "hu": frozenset("őű"),
    "tr": frozenset("ığş"),
    "vi": frozenset("đơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ"),
}
"""Letters of Latin script that tell a language."""
_NAMES = (
    "am Amharic, ar Arabic, bn Bengali, cs Czech, de German, el Greek, en English, es Spanish, fa Persian, "
    "fr French, gu Gujarati, he Hebrew, hi Hindi, hu Hungarian, hy Armenian, id Indonesian, it Italian, "
    "ja Japanese, ka Georgian, km Khmer, kn Kannada, ko Korean, ml Malayalam, nl Dutch, pa Punjabi, pl Polish, "
    "pt Portuguese, ru Russian, si Sinhala, sv Swedish, ta Tamil, te Telugu, th Thai, tr Turkish, uk Ukrainian, "
    "vi Vietnamese, zh Chinese"
)
_ENGLISH_NAMES = dict(entry.split() for entry in _NAMES.split(", "))
_SUGGESTED = ("chinese-clip-b-16", "siglip2-b-16-256", "metaclip2-b-16")
"""Encoders that a warning names, as far as they know the language."""
_MANY = "mul"


class UnknownLanguageWarning(UserWarning):
    """A query is in a language that its encoder was not trained on; the message names encoders that know it."""


def guess_language(text: str) -> str | None:
    """BCP 47 tag of a text's probable language; ``None`` if script, letters and frequent words do not tell."""
    counts = Counter(language for char in text if (language := _language_of(char)))
    letters = sum(unicodedata.category(char)[0] == "L" for char in text)
    if not counts or 2 * counts.total() < letters:
        return _latin(text)
    language = "ja" if counts["ja"] else counts.most_common(1)[0][0]
    telltale = _TELLTALES.get(language)
    if telltale and telltale[0] & set(text):
        return telltale[1]
    return language


def _language_of(char: str) -> str | None:
    code = ord(char)
    return next((language for first, last, language in _SCRIPTS if first <= code <= last), None)


def _latin(text: str) -> str | None:
    """The language of a text in Latin script: two points are needed, and more than any other language has."""
    folded = unicodedata.normalize("NFC", text).lower()
    words = set(re.findall(r"[^\W\d_]+", folded))
    points = Counter({language: len(words & known) for language, known in _WORDS.items()})
    for language, letters in _LETTERS.items():
        points[language] += 2 * bool(letters & set(folded))
    (best, most), (_, second) = points.most_common(2)
    return best if most >= 2 and most > second else None


def language_warning(text: str, encoder: EncoderInfo) -> tuple[str, str] | None:
    """The language of a text that an encoder was not trained on, and what to say of it; None if it may be fine.

    LLM2CLIP is trained on English and reads what its language model reads, so nothing is said of it.
    """
    known = encoder.languages
    language = guess_language(text)
    if language is None or not known or _MANY in known or language in known:
        return None
    if encoder.family == "llm2clip" and tuple(known) == ("en",):
        return None
    from llm2clip.encoders.catalog.entries import find_encoder

    entries = filter(None, map(find_encoder, _SUGGESTED))
    fitting = [entry.name for entry in entries if language in entry.languages or _MANY in entry.languages][:2]
    trained = ", ".join(_ENGLISH_NAMES.get(tag, tag) for tag in known[:3]) + (
        ", ..." if len(known) > 3 else ""
    )
    return language, (
        f"the query looks {_ENGLISH_NAMES.get(language, language)}, and {encoder.name} was trained on {trained}: hits "
        f"may be arbitrary. Encoders that know it: {' and '.join(fitting)} "
        "(llm2clip-index build --from INDEX --encoder NAME)"
    )
