"""``llm2clip-serve``: HTTP API and web page over one index."""
