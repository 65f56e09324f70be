"""Files of an index: manifest, vector segments, items, and transactions on them."""
