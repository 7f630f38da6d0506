#!/usr/bin/env bash
# Installs what the local stack needs and is not here yet: PostgreSQL, the OpenSSH server, a C compiler, and a Python
# virtual environment (.venv) with moto, cargo-lambda and what the tests check with. Says what it does, and asks nothing on Debian and Ubuntu with
# root or passwordless sudo; elsewhere it prints the commands. Leaves no service running or enabled that was not before.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }
needs() { case " ${packages[*]-} " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

has cargo || { say "Rust is missing: see https://rustup.rs"; exit 1; }

packages=()
has cc || packages+=(build-essential)
has openssl || packages+=(openssl)
has ssh-keygen || packages+=(openssh-client)
has sshd || packages+=(openssh-server)
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || packages+=(python3-venv)
shopt -s nullglob
servers=(
  "${BASTION_SYNC_POSTGRES_BIN:-/nowhere}"/initdb /usr/lib/postgresql/1[4-8]/bin/initdb /usr/pgsql-1[4-8]/bin/initdb
  /opt/homebrew/opt/postgresql@1[4-8]/bin/initdb /usr/local/opt/postgresql@1[4-8]/bin/initdb
)
found=0
for server in "${servers[@]}"; do [ -x "$server" ] && found=1; done
[ "$found" = 1 ] || has initdb || packages+=(postgresql)

sudo=()
made=()
# Takes back what kept the new packages' services from starting.
clean_up() { [ "${#made[@]}" = 0 ] || "${sudo[@]}" rm -f "${made[@]}"; made=(); }
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

make_file() { # PATH, MODE, TEXT: for as long as we run, where there is none yet
  [ ! -e "$1" ] || return 0
  made+=("$1")
  "${sudo[@]}" mkdir -p "$(dirname "$1")"
  printf '%s\n' "$3" | "${sudo[@]}" tee "$1" >/dev/null
  "${sudo[@]}" chmod "$2" "$1"
}

install_packages() {
  if [ "$(uname)" = Darwin ]; then
    say "please run: brew install postgresql@17 openssh openssl python3"
    exit 1
  fi
  if ! has apt-get; then
    say "please install with your package manager what Debian calls: ${packages[*]}"
    exit 1
  fi
  if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      say "please run: sudo apt-get update && sudo apt-get install --yes ${packages[*]}"
      exit 1
    fi
    sudo=(sudo)
  fi
  say "installing ${packages[*]} (apt-get)"
  # Debian starts and enables the servers that it installs; the stack runs its own. policy-rc.d forbids the starting.
  if needs openssh-server || needs postgresql; then
    make_file /usr/sbin/policy-rc.d 755 $'#!/bin/sh\nexit 101'
  fi
  if needs postgresql; then
    make_file /etc/postgresql-common/createcluster.conf 644 'create_main_cluster = false'
  fi
  "${sudo[@]}" apt-get update -qq || say "apt-get update had errors; going on with the lists that are there"
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    -o Dpkg::Options::=--force-confold "${packages[@]}" >&2
  clean_up
  # Only what this call has brought in.
  if needs openssh-server; then "${sudo[@]}" systemctl disable ssh >/dev/null 2>&1 || true; fi
  if needs postgresql; then "${sudo[@]}" systemctl disable postgresql >/dev/null 2>&1 || true; fi
}

[ "${#packages[@]}" = 0 ] || install_packages

if ! cmp -s tests/requirements.txt .venv/installed.txt || ! .venv/bin/python -c 'import moto' >/dev/null 2>&1; then
  say "making .venv: moto, cargo-lambda, AWS's runtime emulator, sqlglot, duckdb (pip)"
  python3 -m venv --clear .venv
  PIP_USER=0 .venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
  # AWS's runtime interface emulator lies in this wheel. Its Python is not run, so none of its dependencies is needed.
  PIP_USER=0 .venv/bin/pip install --quiet --disable-pip-version-check --no-deps \
    "$(grep --only-matching 'aws-sam-cli==[0-9.]*' tests/requirements.txt)"
  cp tests/requirements.txt .venv/installed.txt
fi
