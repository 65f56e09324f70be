"""Published models as data, and where their files are."""
