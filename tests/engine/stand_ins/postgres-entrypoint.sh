#!/bin/bash
# A stand-in for the entrypoint of the official PostgreSQL image, as far as the rendered files rely on it: an empty
# PGDATA is made by initdb, and the files of /docker-entrypoint-initdb.d run on a server that listens on a socket only.
set -Eeuo pipefail
[ "$1" = postgres ]
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  PGPASSWORD=$(<"$POSTGRES_PASSWORD_FILE")
  export PGPASSWORD
  # shellcheck disable=SC2086 # it holds several options
  initdb --pgdata "$PGDATA" --username postgres --pwfile <(printf '%s\n' "$PGPASSWORD") ${POSTGRES_INITDB_ARGS-}
  pg_ctl --pgdata "$PGDATA" --wait --options "$(printf '%q ' "${@:2}") -c listen_addresses=''" start
  for file in /docker-entrypoint-initdb.d/*.sh; do
    if [ -x "$file" ]; then "$file"; else . "$file"; fi
  done
  pg_ctl --pgdata "$PGDATA" --mode fast --wait stop
  unset PGPASSWORD
fi
exec "$@"
