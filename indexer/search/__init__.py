"""An index opened for searching; explains and verifies it."""
