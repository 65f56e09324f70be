from .query.languages import UnknownLanguageWarning as UnknownLanguageWarning
from .searcher import Searcher as Searcher
