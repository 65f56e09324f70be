"""The command ``llm2clip-eval``."""

from __future__ import annotations

from llm2clip.common import entrypoint
from llm2clip.common.terminal import GroupedCommand, make_app, renamed
from llm2clip.eval.commands.classify import captions, classify
from llm2clip.eval.commands.leaderboard import compare, leaderboard
from llm2clip.eval.commands.prepare import prepare
from llm2clip.eval.commands.run import run

app = make_app("Evaluate encoders: retrieval quality and cost.")
OLD_NAMES = {run: {"through": "index", "parity": "preprocessing"}, prepare: {"pictures": "images"}}
for command in (prepare, run, leaderboard, compare, classify, captions):
    app.command(cls=GroupedCommand, context_settings=renamed(OLD_NAMES.get(command, {})))(command)


if __name__ == "__main__":
    entrypoint.evaluate()
