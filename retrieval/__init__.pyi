from .query import UnknownLanguageWarning as UnknownLanguageWarning
from .searcher import Searcher as Searcher
