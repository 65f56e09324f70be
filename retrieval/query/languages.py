"""In which language a text is, and a warning where an encoder does not know it.

Scripts of one language tell it: Han, kana, Hangul, Thai, ... Of languages in Latin script only some are told, by their
frequent words and by letters that others lack; a single noun mostly tells nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.encoders import EncoderInfo

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
