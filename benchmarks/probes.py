"""How late verdicts are: 200 endpoints of which 20 hang, watched by one prober: `python -m benchmarks.probes`.

From the time that a probe was due to its stored verdict, the largest of all probes and rounds, as the prober's own
metric says. Aim: the timeout, 1 s, and one more. The endpoints are served by this process, so that the host does more
than a prober's would; exits 1 when the aim is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.misbehaving import misbehaving
from tests.services.prober.test_watch import ENDPOINTS, HANGING, TIMEOUT_S, entry, metrics, prober, wait_for, write_spec

DELAY = "synapse_ops_probe_verdict_delay_seconds"
AIM_S = TIMEOUT_S + 1.0
START_S = 10.0  # everything starts at once, once
EVERY_S = 3.0


def main() -> None:
    """Measure, print, and exit 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    latest: list[float] = []
    with misbehaving() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = ["/hang" if number % (ENDPOINTS // HANGING) == 0 else "/ok" for number in range(ENDPOINTS)]
        spec = write_spec(
            folder, [entry(f"e{number}", server.url(path), f"{EVERY_S:g}s") for number, path in enumerate(paths)]
        )
        with prober(spec, folder):
            wait_for(lambda: len(metrics(folder).get(DELAY, {})) == ENDPOINTS)
            time.sleep(START_S)
            for _ in range(rounds):
                latest.append(max(metrics(folder)[DELAY].values()))
                time.sleep(EVERY_S)
    print(
        f"{ENDPOINTS} endpoints, {HANGING} hang: latest verdict of {rounds} rounds {max(latest):.2f} s, aim {AIM_S:g}"
    )
    sys.exit(0 if max(latest) <= AIM_S else 1)


if __name__ == "__main__":
    main()
