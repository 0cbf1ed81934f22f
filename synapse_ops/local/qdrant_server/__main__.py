"""The process: `python -m synapse_ops.local.qdrant_server --data DIR --port PORT --key-file FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from synapse_ops.errors import SynapseOpsError


def main() -> int:
    parser = argparse.ArgumentParser(description="The embedded vector store.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key-file", type=Path, help="holds the API key; without it, no key is required")
    given = parser.parse_args()

    import uvicorn

    from synapse_ops.local.qdrant_server.application import make_application
    from synapse_ops.local.qdrant_server.store import Store

    key = given.key_file.read_text(encoding="utf-8").strip() if given.key_file else None
    try:
        store = Store(given.data.absolute())
    except SynapseOpsError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    uvicorn.run(
        make_application(store, key),
        host="127.0.0.1",
        port=given.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
