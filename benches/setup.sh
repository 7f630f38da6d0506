#!/usr/bin/env bash
# Installs the tools that `make bench` shows beside the function, each into a virtual environment below target/bench. One that
# cannot be installed is left out, and the table says so.
set -euo pipefail
cd "$(dirname "$0")/.."

install() { # ENVIRONMENT, PACKAGES…
  local at=target/bench/$1
  shift
  if [ "$(cat "$at/bin/installed" 2>/dev/null)" = "$*" ]; then return; fi
  printf 'bench: installing %s (pip)\n' "$*" >&2
  python3 -m venv --clear "$at"
  if PIP_USER=0 "$at/bin/pip" install --quiet --disable-pip-version-check "$@"; then
    printf '%s' "$*" > "$at/bin/installed"
  fi
}

# What the Python example names; DuckDB (MIT), dlt (Apache-2.0), ingestr (MIT).
install python-example sshtunnel==0.4.0 paramiko==3.5.1 psycopg2-binary==2.9.10
install duckdb duckdb==1.5.5 duckdb-extension-postgres-scanner==1.5.5
install dlt 'dlt[filesystem,sql-database]==1.31.0' pyarrow==26.0.1 psycopg2-binary==2.9.10
install ingestr ingestr==0.15.9
