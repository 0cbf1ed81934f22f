"""The start gate in a node's start script: it asks before each start as the primary, whatever started the container.

Whoever restarts a container asks nobody: the engine at boot, the kubelet after a crash, both past `depends_on` and init
containers. So the node's first process asks. Three know of a promotion, the nearest first: the marker in the data
directory, the other node, and the prober, which reads the ledger and the repository and has its keys. One says no: the
node waits, and asks again. Nobody says yes: it waits as well, because whoever is away may be what took its place. A
node that follows, one that recovers onto a timeline of its own, and one without data begin no second history.
"""

from __future__ import annotations

import shlex
from urllib.parse import quote

from synapse_ops.manifests.stack.parts import OPS, PlaceName, address_of
from synapse_ops.spec import Spec

PATH = "/start-gate"
OVERRIDE = "/tmp/start-anyway"  # noqa: S108 - in the container, by whoever may run commands in it
_TRY_S, _PAUSE_S = 15, 2


def start_gate(spec: Spec, name: str, other: str, place: PlaceName) -> str:
    """Return what a start script runs before the server. name: as `failover` has it. other: conninfo of the other node,
    for a role that may connect to `postgres`; its password is in the passfile.
    """
    prober, me = address_of(spec, OPS, place), shlex.quote(name)
    return f"""
# The start gate: as the primary it starts only when nobody took its place (docs/failover.md).
other={shlex.quote(f"{other} dbname=postgres")}
field() {{ sed -n "s/^$1: *//p" /tmp/control; }}
ask_prober() {{
  timeline=$(field "Latest checkpoint's TimeLineID") promoted=$(field "Min recovery ending loc's timeline")
  if [ "$promoted" -gt "$timeline" ]; then timeline=$promoted; fi
  path={PATH}'?node={quote(name, safe="")}&system_identifier='$(field 'Database system identifier')"&timeline=$timeline"
  timeout {_TRY_S} bash -c 'exec 3<>"/dev/tcp/$1/$2"; printf "%s\\r\\n" "GET $3 HTTP/1.0" "Host: localhost:$2" "" >&3
    cat <&3' ask {shlex.quote(prober.host)} {prober.port} "$path" 2>/dev/null || true
}}
why_not() {{
  if [ -e "$PGDATA/synapse.fenced" ]; then echo "it is fenced by incident $(cat "$PGDATA/synapse.fenced")"; return; fi
  case $(timeout {_TRY_S} psql -XAtwc 'select pg_is_in_recovery()' "$other" 2>/dev/null) in
    t) return ;;
    f) echo "the other node takes writes"; return ;;
  esac
  if ! LC_ALL=C pg_controldata --pgdata "$PGDATA" >/tmp/control; then echo "it has no control file"; return; fi
  answer=$(ask_prober)
  case $answer in
    "HTTP/1.1 200 "*) ;;
    HTTP/*) echo "${{answer##*$'\\n'}}" ;;
    *) echo "neither the other node nor the prober at {prober} says whether somebody took its place" ;;
  esac
}}
trap 'exit 1' INT TERM
said=
while [ -s "$PGDATA/PG_VERSION" ] && [ ! -e "$PGDATA/standby.signal" ] && [ ! -e "$PGDATA/recovery.signal" ]; do
  if [ -e {OVERRIDE} ]; then rm {OVERRIDE}; echo {me}" starts, as {OVERRIDE} has it" >&2; break; fi
  why=$(why_not)
  if [ -z "$why" ]; then break; fi
  if [ "$why" != "$said" ]; then
    echo {me}" does not start as the primary: $why" >&2
    echo "hint: It asks again. Rejoin it as a standby (docs/failover.md); or, only if no other node takes writes," \\
      "start it once all the same: touch {OVERRIDE} in this container" >&2
    said=$why
  fi
  sleep {_PAUSE_S} & wait $!  # a signal ends it at once
done
"""
