"""A stand-in for Qdrant's image: the embedded server (docs/embedded-qdrant.md), as the rendered config.yaml has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvicorn
from ruamel.yaml import YAML

from synapse_ops.local.qdrant_server.application import make_application
from synapse_ops.local.qdrant_server.store import Store

given = YAML(typ="safe").load(Path(sys.argv[sys.argv.index("--config-path") + 1]))
service, storage = given["service"], Path(given["storage"]["storage_path"])
has_tls = service["enable_tls"]
uvicorn.run(
    make_application(Store(storage), os.environ.get("QDRANT__SERVICE__API_KEY")),
    host="",  # every address, of both families
    port=service["http_port"],
    ssl_certfile=os.environ["QDRANT__TLS__CERT"] if has_tls else None,
    ssl_keyfile=os.environ["QDRANT__TLS__KEY"] if has_tls else None,
    log_level="warning",
    timeout_graceful_shutdown=5,
)
