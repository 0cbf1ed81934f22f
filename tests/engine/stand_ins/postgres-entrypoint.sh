#!/bin/bash
# A stand-in for the entrypoint of the official PostgreSQL image, as far as our files rely on it: an empty PGDATA is made
# by initdb, with POSTGRES_USER and POSTGRES_DB, and clients of every address are asked for their password; the files of
# /docker-entrypoint-initdb.d run on a server that listens on a socket only.
set -Eeuo pipefail
[ "${1:0:1}" = - ] && set -- postgres "$@"
user=${POSTGRES_USER:-postgres}
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  PGPASSWORD=$(<"$POSTGRES_PASSWORD_FILE")
  export PGPASSWORD
  # shellcheck disable=SC2086 # it holds several options
  initdb --pgdata "$PGDATA" --username "$user" --pwfile <(printf '%s\n' "$PGPASSWORD") ${POSTGRES_INITDB_ARGS-}
  printf "listen_addresses = '*'\n" >>"$PGDATA/postgresql.conf"
  printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
  PGUSER=$user pg_ctl --pgdata "$PGDATA" --wait --options "$(printf '%q ' "${@:2}") -c listen_addresses=''" start
  if [ "${POSTGRES_DB:-$user}" != postgres ]; then createdb --username "$user" --maintenance-db postgres "${POSTGRES_DB:-$user}"; fi
  for file in /docker-entrypoint-initdb.d/*.sh; do
    if [ ! -e "$file" ]; then :; elif [ -x "$file" ]; then "$file"; else . "$file"; fi
  done
  pg_ctl --pgdata "$PGDATA" --mode fast --wait stop
  unset PGPASSWORD
fi
exec "$@"
