#!/usr/bin/env bash
# Installs what the local stack needs and is not here yet: PostgreSQL, the OpenSSH server, a C compiler, and a Python
# virtual environment (.venv) with moto and cargo-lambda. Says what it does, and asks nothing on Debian and Ubuntu with
# root or passwordless sudo; elsewhere it prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

has cargo || { say "Rust is missing: see https://rustup.rs"; exit 1; }

packages=()
has cc || packages+=(build-essential)
has openssl || packages+=(openssl)
has ssh-keygen || packages+=(openssh-client)
has sshd || packages+=(openssh-server)
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || packages+=(python3-venv)
shopt -s nullglob
servers=(/usr/lib/postgresql/1[4-8]/bin/initdb /usr/pgsql-1[4-8]/bin/initdb "${BASTION_SYNC_POSTGRES_BIN:-/nowhere}"/initdb)
if [ "$(uname)" = Darwin ]; then
  servers+=(/opt/homebrew/opt/postgresql@1[4-8]/bin/initdb /usr/local/opt/postgresql@1[4-8]/bin/initdb)
fi
found=0
for server in "${servers[@]}"; do [ -x "$server" ] && found=1; done
[ "$found" = 1 ] || has initdb || packages+=(postgresql)

install_packages() {
  local sudo=()
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
      say "please run: sudo apt-get install --yes ${packages[*]}"
      exit 1
    fi
    sudo=(sudo)
  fi
  say "installing ${packages[*]} (apt-get); no service of theirs is started or enabled"
  # Debian starts and enables what it installs, but the stack runs servers of its own: policy-rc.d forbids starting, the
  # cluster that the package would make is not made, and what would start at boot is disabled.
  local policy=/usr/sbin/policy-rc.d had_policy=1
  if [ ! -e "$policy" ]; then
    had_policy=0
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod +x "$policy"
  fi
  "${sudo[@]}" mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] ||
    echo 'create_main_cluster = false' | "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
  local done=0
  "${sudo[@]}" apt-get update -qq &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq -o Dpkg::Options::=--force-confold \
      "${packages[@]}" >&2 && done=1
  [ "$had_policy" = 1 ] || "${sudo[@]}" rm -f "$policy"
  [ "$done" = 1 ] || { say "apt-get failed"; exit 1; }
  local service
  for service in ssh postgresql; do
    case " ${packages[*]} " in
      *" openssh-server "* | *" postgresql "*)
        "${sudo[@]}" systemctl disable "$service" >/dev/null 2>&1 || true ;;
    esac
  done
}

[ "${#packages[@]}" = 0 ] || install_packages

if ! cmp -s tests/requirements.txt .venv/installed.txt; then
  say "making .venv with moto and cargo-lambda (pip)"
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
  cp tests/requirements.txt .venv/installed.txt
fi
