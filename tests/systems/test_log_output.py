"""Log lines of a process that is ours: one form for our own and for those of libraries."""

from __future__ import annotations

import json
import subprocess
import sys

CALL_TIMEOUT_S = 120
LIBRARY_AT_WORK = """
import logging
from synapse_ops.systems.log_output import configure_logging, take_over_libraries
configure_logging()
take_over_libraries()
take_over_libraries()
for _ in range(12):
    logging.warning("could not connect\\nis the server running?")
logging.getLogger("other").error("lost 100%% of %s", "it")
logging.getLogger("other").info("chatter")
"""


def test_what_a_library_warns_of_is_one_line_of_our_form_and_not_repeated() -> None:
    """A storage that is away is told once, not in four lines at each of a client's tries."""
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY_AT_WORK], capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=True
    )

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["log.level"], line["message"], line["synapse.logger"]) for line in lines] == [
        ("warning", "could not connect", "root"),
        ("error", "lost 100% of it", "other"),
    ]
