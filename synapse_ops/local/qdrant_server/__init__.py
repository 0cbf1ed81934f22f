"""A small server around Qdrant Edge, for the embedded stack: the part of Qdrant's REST API that we and its clients use.

    answers.py        envelopes, statuses and texts of errors, as a real server gives them
    configuration.py  what a collection's configuration may be, and its defaults
    conditions.py     filters in JSON to the engine's own
    queries.py        queries in JSON to the engine's own
    archive.py        snapshots in the real server's layout: sparse tars, written and read
    collection.py     one collection: its engine, its folder, its writes in order
    store.py          all collections, aliases and snapshots of a data folder
    routes_*.py       the HTTP side
    application.py    all of it as one ASGI application
    __main__.py       the process

Qdrant Edge lets one process open a shard, so this is that process. One node, one shard per collection.
docs/embedded-qdrant.md says what it does not speak; tests/contract compares it with a real server.
"""
