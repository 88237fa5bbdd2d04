#!/bin/sh
# Makes the database at the first start, then becomes the server with the words given after `postgres`.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
shift
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    password=$(mktemp)
    printf '%s' "$POSTGRES_PASSWORD" > "$password"
    initdb --username "$POSTGRES_USER" --pwfile "$password" --encoding UTF8 --locale C.UTF-8 --auth-host scram-sha-256 --auth-local trust > /dev/null
    rm "$password"
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl --silent --wait --options "-c listen_addresses=''" start > /dev/null
    [ "$POSTGRES_DB" = postgres ] || createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --silent --wait stop > /dev/null
fi
exec postgres -c listen_addresses='*' "$@"
