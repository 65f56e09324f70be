from .query.languages import UnknownLanguageWarning as UnknownLanguageWarning
from .query.texts import LongTextWarning as LongTextWarning
from .ranking.options import Page as Page
from .ranking.options import SearchOptions as SearchOptions
from .searcher import Searcher as Searcher
