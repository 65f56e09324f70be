"""The filter language of ``--where``: parsed, compiled to SQL, sandboxed."""
