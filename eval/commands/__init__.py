"""The commands of ``llm2clip-eval``: parse options, make one call, print."""
