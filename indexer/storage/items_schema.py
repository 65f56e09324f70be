"""The tables of ``items-*.db``."""

from __future__ import annotations

NEVER = 2**63 - 1
"""``removed`` of what is still there."""

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER NOT NULL,            -- number of its vector
    added INTEGER NOT NULL,         -- generation that added this row
    removed INTEGER NOT NULL DEFAULT {NEVER},  -- generation that took it away; this number: none
    source INTEGER NOT NULL,        -- position of its corpus among the manifest's sources
    key TEXT NOT NULL,              -- stable name below the root of the corpus; the URI is root/key
    path TEXT,                      -- file below the root that holds the bytes; NULL: the key is that file
    locator TEXT,                   -- JSON: how to read the image again; NULL: it is the whole file of that key
    size INTEGER NOT NULL,          -- bytes of the encoded image
    mtime_ns INTEGER NOT NULL,      -- of the file that holds it, nanoseconds since 1970
    sidecars INTEGER,               -- hash of names, sizes and times of its caption and metadata files; NULL: none
    hash BLOB NOT NULL,             -- BLAKE2b, 16 bytes, of the encoded image
    width INTEGER NOT NULL,         -- as shown, in pixels
    height INTEGER NOT NULL,
    caption TEXT,
    metadata TEXT,                  -- JSON object; NULL: empty
    checksum INTEGER NOT NULL,      -- of the row: see docs/index-format.md
    PRIMARY KEY (id, added)
) WITHOUT ROWID;
CREATE UNIQUE INDEX items_live ON items (source, key) WHERE removed = {NEVER};
CREATE INDEX items_hash ON items (hash);
CREATE INDEX items_removed ON items (removed) WHERE removed < {NEVER};
CREATE TABLE errors (
    source INTEGER NOT NULL,
    key TEXT NOT NULL,
    stage TEXT NOT NULL,            -- list, read, decode or encode: not indexed; sidecar: indexed without it;
                                    -- removed: taken out by hand, and to stay out
    reason TEXT NOT NULL,
    size INTEGER,
    mtime_ns INTEGER,
    added INTEGER NOT NULL,
    removed INTEGER NOT NULL DEFAULT {NEVER},
    PRIMARY KEY (source, key, added)
) WITHOUT ROWID;
CREATE TABLE unfinished (           -- vectors of a change that was never committed, to be taken over by the next
    source TEXT NOT NULL,           -- JSON of the source, as in the manifest
    key TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    hash BLOB NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    file TEXT NOT NULL,             -- of vectors, not named by the manifest
    row INTEGER NOT NULL,
    PRIMARY KEY (source, key)
) WITHOUT ROWID;
CREATE INDEX unfinished_hash ON unfinished (hash);
"""
