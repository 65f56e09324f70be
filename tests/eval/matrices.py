"""Score matrices full of ties, small enough to try every order of the gallery."""

import itertools

import numpy as np
from hypothesis import strategies as st


@st.composite
def matrices(draw, rows):
    """Scores of at most so many rows and 6 columns, and a boolean matrix of right pairs, one at least."""
    rows, columns = draw(st.integers(1, rows)), draw(st.integers(1, 6))
    cells = rows * columns
    scores = draw(st.lists(st.integers(-2, 2), min_size=cells, max_size=cells))
    right = draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    right[draw(st.integers(0, cells - 1))] = True
    return np.array(scores, np.float32).reshape(rows, columns), np.array(right, bool).reshape(rows, columns)


def orders(row):
    """Every order of the gallery that the scores allow."""
    for order in itertools.permutations(range(len(row))):
        if all(row[a] >= row[b] for a, b in itertools.pairwise(order)):
            yield order
