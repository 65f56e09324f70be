"""The report on nano, the demonstration model: emoji by name, free-form queries, composed scenes, cost, controls."""
