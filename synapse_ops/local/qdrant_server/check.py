"""Opens a shard and reads all of it: `python -m synapse_ops.local.qdrant_server.check SHARD`; status 0 when it can."""

from __future__ import annotations

import sys

PAGE = 1000


def main(shard: str) -> None:
    import qdrant_edge as engine

    opened = engine.EdgeShard.load(shard)
    offset = None
    while True:
        _, offset = opened.scroll(engine.ScrollRequest(offset=offset, limit=PAGE, with_payload=True, with_vector=True))
        if offset is None:
            break
    opened.flush()
    opened.close()


if __name__ == "__main__":
    main(sys.argv[1])
