"""The leaderboard in a terminal, as Markdown, CSV and HTML, and the comparison of two encoders."""
