"""From the nearest images to an answer: confidence, duplicates, diversity, words, pages."""
