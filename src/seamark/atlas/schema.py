"""What lies in an atlas: the schema of its SQLite file, by versions.

`opening.py` opens such files and brings earlier versions up to date.
"""

from __future__ import annotations

APPLICATION_ID = 0x5EA3A12C
"""Marks a SQLite file as an atlas (`PRAGMA application_id`)."""

BEGINNINGS = (2, 3)
"""Letters of the beginnings of words that the word index knows by themselves (`prefix` below)."""

# Checks say `a = 'x' OR a = 'y'`: SQLite builds a table for a list in IN, at every row that is written.
V1 = """
CREATE TABLE meta(
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('changes', 0);  -- counts what was committed, so that readers know when to look again
CREATE TABLE runs(
    id TEXT PRIMARY KEY,          -- key of a scan, of explanations, digest of an imported file, …
    kind TEXT NOT NULL,           -- scan, explain, simulate, ratings, contrast, import, …
    title TEXT NOT NULL,
    created TEXT NOT NULL,        -- UTC, ISO 8601
    manifest TEXT NOT NULL        -- JSON
) STRICT;
CREATE TABLE models(
    name TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE saes(
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL REFERENCES models(name),
    hookpoint TEXT NOT NULL,
    layer INTEGER NOT NULL,
    d_in INTEGER, d_sae INTEGER, activation TEXT, k INTEGER,
    fingerprint TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE features(
    id INTEGER PRIMARY KEY,
    sae INTEGER NOT NULL REFERENCES saes(number),
    latent INTEGER NOT NULL CHECK (latent >= 0),
    -- What lists are filtered and sorted by; derived from the tables below whenever AtlasWriter commits.
    score REAL,                   -- the simulation score of the explanation that is shown first
    rating INTEGER CHECK (rating BETWEEN 1 AND 5),
    sign INTEGER CHECK (sign = 1 OR sign = -1),
    contrast REAL,
    explained INTEGER NOT NULL DEFAULT 0 CHECK (explained BETWEEN 0 AND 1),
    state TEXT                    -- of the explanation that is shown first
        CHECK (state = 'text' OR state = 'masked' OR state = 'null' OR state = 'failed'),
    domains TEXT NOT NULL DEFAULT '',   -- of its tags, by name, a line feed before, between and behind them
    languages TEXT NOT NULL DEFAULT '', -- of its explanations, written like the domains
    -- What was measured: by whoever gave it, never derived.
    firings INTEGER, share REAL,  -- scoring positions at which it fires, and their share of all, 0-1
    mean REAL, max REAL,          -- activation where it fires
    texts INTEGER,                -- texts in which it fires
    q REAL, q_reason TEXT NOT NULL DEFAULT '',
    label TEXT,                   -- derived: the beginning of the explanation that is shown first
    promoted TEXT, suppressed TEXT,  -- JSON lists of tokens
    histogram TEXT,               -- JSON {"edges": [n + 1], "counts": [n]}, activations above 0
    UNIQUE (sae, latent)
) STRICT;
-- A filter reads this index alone: rows are ten times as wide.
CREATE INDEX features_listed ON features(
    sae, latent, score, rating, contrast, share, sign, explained, state, domains, languages
);
CREATE INDEX features_by_score ON features(score DESC, id);
CREATE INDEX features_by_rating ON features(rating DESC, score DESC, id);
CREATE INDEX features_by_contrast ON features(contrast DESC, id);
CREATE INDEX features_by_share ON features(share DESC, id);
CREATE TABLE explanations(
    id INTEGER PRIMARY KEY,
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    state TEXT NOT NULL CHECK (state = 'text' OR state = 'masked' OR state = 'null' OR state = 'failed'),
    text TEXT,                    -- as it was given; NULL where state is null or failed
    reason TEXT NOT NULL DEFAULT '',
    method TEXT NOT NULL,         -- lexical, llm, imported
    model TEXT NOT NULL DEFAULT '',
    prompt_version TEXT NOT NULL DEFAULT '',
    language TEXT NOT NULL,
    rating INTEGER CHECK (rating BETWEEN 1 AND 5), rating_reason TEXT NOT NULL DEFAULT '',
    tokens_in INTEGER NOT NULL DEFAULT 0, tokens_out INTEGER NOT NULL DEFAULT 0, cost REAL,
    run TEXT NOT NULL REFERENCES runs(id),
    UNIQUE (feature, method, model, prompt_version, language, run)
) STRICT;
CREATE TABLE tags(
    explanation INTEGER NOT NULL REFERENCES explanations(id) ON DELETE CASCADE,
    domain TEXT NOT NULL,
    concept TEXT NOT NULL DEFAULT '',  -- empty: the domain as a whole
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    rank INTEGER NOT NULL,        -- in the order given
    PRIMARY KEY (explanation, domain, concept)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_domain ON tags(domain, concept, feature);
CREATE INDEX tags_by_concept ON tags(concept, feature);
CREATE INDEX tags_by_feature ON tags(feature);
CREATE TABLE simulations(
    id INTEGER PRIMARY KEY,
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    explanation INTEGER REFERENCES explanations(id) ON DELETE CASCADE,
    level TEXT NOT NULL,          -- segment, token; imported: as named there
    method TEXT NOT NULL, model TEXT NOT NULL DEFAULT '', prompt_version TEXT NOT NULL DEFAULT '',
    correlation REAL, low REAL, high REAL, reason TEXT NOT NULL DEFAULT '',
    accuracy REAL, accuracy_low REAL, accuracy_high REAL, accuracy_reason TEXT NOT NULL DEFAULT '',
    n_texts INTEGER NOT NULL DEFAULT 0, n_units INTEGER NOT NULL DEFAULT 0, n_failed INTEGER NOT NULL DEFAULT 0,
    tokens_in INTEGER NOT NULL DEFAULT 0, tokens_out INTEGER NOT NULL DEFAULT 0, cost REAL,
    run TEXT NOT NULL REFERENCES runs(id)
) STRICT;
CREATE UNIQUE INDEX simulations_once ON simulations(
    feature, run, level, method, model, prompt_version, coalesce(explanation, 0)
);
CREATE INDEX simulations_by_explanation ON simulations(explanation);
CREATE TABLE ratings(
    id INTEGER PRIMARY KEY,
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    rater TEXT NOT NULL,          -- human:<name>, statistical, …
    rating INTEGER CHECK (rating BETWEEN 1 AND 5), reason TEXT NOT NULL DEFAULT '',
    run TEXT NOT NULL REFERENCES runs(id),
    UNIQUE (feature, rater, run)
) STRICT;
CREATE TABLE evidence(
    id INTEGER PRIMARY KEY,
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    kind TEXT NOT NULL,           -- contrast:<group>, direct_effect, causal_effect, detector:<domain>, …
    value REAL, low REAL, high REAL, n INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',  -- why there is no value
    run TEXT NOT NULL REFERENCES runs(id),
    UNIQUE (feature, kind, run)
) STRICT;
CREATE INDEX evidence_by_kind ON evidence(kind, value);
CREATE TABLE texts(
    id INTEGER PRIMARY KEY,       -- before version 2, of the whole row: the first 63 bits of its BLAKE2b
    name TEXT NOT NULL,           -- its id in the corpus it came from
    tokens TEXT NOT NULL,         -- JSON list of token strings, whose join is the text
    source TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE contexts(
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind = 'top' OR kind = 'level' OR kind = 'silent' OR kind = 'near_miss'),
    level INTEGER NOT NULL DEFAULT 0 CHECK (level BETWEEN 0 AND 10),
    rank INTEGER NOT NULL,
    half TEXT NOT NULL DEFAULT '' CHECK (half = '' OR half = 'explain' OR half = 'simulate'),
    text INTEGER NOT NULL REFERENCES texts(id),
    peak REAL NOT NULL,           -- largest activation
    at BLOB NOT NULL,             -- little-endian: int32 token positions, then float32 activations there
    PRIMARY KEY (feature, kind, level, half, rank)
) STRICT, WITHOUT ROWID;
CREATE TABLE neighbours(
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    rank INTEGER NOT NULL, other INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    cosine REAL NOT NULL,
    PRIMARY KEY (feature, rank)
) STRICT, WITHOUT ROWID;
CREATE TABLE layouts(
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,    -- decoder, explanations
    about TEXT NOT NULL,          -- JSON: method, seed, what was left out
    run TEXT REFERENCES runs(id)
) STRICT;
CREATE TABLE points(
    layout INTEGER NOT NULL REFERENCES layouts(number) ON DELETE CASCADE,
    feature INTEGER NOT NULL REFERENCES features(id) ON DELETE CASCADE,
    x REAL NOT NULL, y REAL NOT NULL,
    PRIMARY KEY (layout, feature)
) STRICT, WITHOUT ROWID;
CREATE TABLE marks(
    id INTEGER PRIMARY KEY,
    scan TEXT NOT NULL,           -- key of the scan whose pair it is
    pair TEXT NOT NULL,
    mark TEXT NOT NULL CHECK (mark = 'wrong' OR mark = 'fine'),
    note TEXT NOT NULL DEFAULT '',
    time TEXT NOT NULL,
    UNIQUE (scan, pair)
) STRICT;
CREATE VIRTUAL TABLE search USING fts5(
    words, tokenize = "unicode61 remove_diacritics 2", prefix = '2 3'
);
"""
# Texts are numbered as they come; those of earlier files keep the ids that they have, their hashes.
V2 = """
CREATE TABLE text_blocks(
    first INTEGER PRIMARY KEY,    -- id of a text; those of the block follow each other
    hashes BLOB NOT NULL          -- little-endian int64 of each: the first 63 bits of its BLAKE2b
) STRICT;
"""
MIGRATIONS = (V1, V2)
"""Script i brings a file from version i to i + 1."""
READ_FROM = 1
"""The oldest version that can be read as it is: what came since is for writers alone."""
