#!/usr/bin/env bash
# All gates, in the order of their cost. CI runs only this. Each gate says its name and its time;
# the first that fails ends the run with its own output as the last thing on the screen.
#
#   tests/check.sh                     all gates
#   tests/check.sh fmt test            these gates
#   tests/check.sh acme                certificates from a CA, in short; needs root, and skips without
#   tests/check.sh gateway measure     two more, not for every change: they need root, the npm packages of tests/setup.sh,
#                                      a release build and some minutes of a quiet machine
set -euo pipefail
cd "$(dirname "$0")/.."

gates=(fmt map audit clippy docs test toml units instructions acme oldest)

fmt() {
    cargo fmt --all --check
}

# ARCHITECTURE.md names every source file, and none that is gone.
map() {
    local file name failed=0
    for file in $(find src -name '*.rs' ! -name tests.rs ! -name testing.rs | sort); do
        name=${file#src/}
        # A file deep down may be named from its parent's folder on.
        if ! grep -qF -e "\`$name\`" -e "\`${name#*/}\`" ARCHITECTURE.md; then
            echo "ARCHITECTURE.md does not name $file"
            failed=1
        fi
    done
    # shellcheck disable=SC2016
    for name in $(grep -oE '`[a-z0-9_/]+\.rs`' ARCHITECTURE.md | tr -d '`' | sort -u); do
        if [ -z "$(find ./src ./tests -path "*/$name")" ]; then
            echo "ARCHITECTURE.md names $name, which does not exist"
            failed=1
        fi
    done
    return "$failed"
}

# Licences, bans and sources always; advisories where cargo-deny is installed, because building it
# costs more than all other gates together.
audit() {
    python3 -B tests/audit.py
    # The fuzz targets are a workspace of their own, and nothing else here looks at its lock file.
    cargo fetch --quiet --locked --manifest-path tests/fuzz/Cargo.toml
    if ! command -v cargo-deny >/dev/null; then
        echo "advisories: skipped, cargo-deny is not installed (cargo install --locked cargo-deny)"
        return
    fi
    cargo deny --locked check licenses bans sources
    if cargo deny --locked fetch db; then
        cargo deny --locked check advisories
    else
        echo "advisories: skipped, the advisory database cannot be fetched from here"
    fi
}

clippy() {
    cargo clippy --locked --all-targets --all-features -- -D warnings
}

docs() {
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --all-features
}

# Exactly what README.md tells a new user to run.
test() {
    grep -qx 'cargo test' README.md
    cargo test
}

# Every configuration that we hand out, in files and in the documents, is one that `tidegate check` accepts.
toml() {
    cargo build --locked
    local file failed=0
    mkdir -p "$work/blocks"
    for file in README.md docs/*.md deploy/README.md; do
        awk -v name="$work/blocks/$(echo "$file" | tr / -)" '
            /^```/ && inside { inside = 0; close(out); next }
            /^```toml$/ { inside = 1; out = name "-line-" NR ".toml"; next }
            inside { print > out }' "$file"
    done
    for file in config/*.toml $(find examples -name '*.toml' ! -name Cargo.toml | sort) "$work"/blocks/*.toml; do
        # `check` tries to write where certificates are kept: not this machine's own.
        if STATE_DIRECTORY="$work/state" target/debug/tidegate check --strict -c "$(with_certificates "$file")" >"$work/check.out" 2>&1; then
            echo "ok    ${file#"$work"/blocks/}"
        else
            echo "FAIL  ${file#"$work"/blocks/}"
            cat "$work/check.out"
            failed=1
        fi
    done
    return "$failed"
}

# The file itself; or, where it names certificates or users of an installed system, a copy that names real ones.
with_certificates() {
    local names copy name host
    names=$(grep -oE '/etc/tidegate/([a-z0-9.-]+\.pem|users)' "$1" | sort -u) || { echo "$1"; return; }
    copy="$work/copy-${1//\//-}"
    mkdir -p "$work/etc"
    for name in $names; do
        name=$(basename "$name" .pem)
        if [ "$name" = users ]; then
            (umask 077 && echo secret | target/debug/tidegate hash-password --user alice >"$work/etc/users")
            continue
        fi
        host=$name.example.com
        (
            umask 077
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=$host" \
                -addext "subjectAltName=DNS:$host" -keyout "$work/etc/$name.key" -out "$work/etc/$name.pem" 2>"$work/openssl.err" ||
                cat "$work/openssl.err" >&2
        )
    done
    sed "s#/etc/tidegate/#$work/etc/#g" "$1" >"$copy"
    echo "$copy"
}

# systemd's own judgement of the units, with the binary that was just built in place of the installed one.
units() {
    python3 -c 'import plistlib; plistlib.load(open("deploy/tidegate.plist", "rb"))'
    if ! command -v systemd-analyze >/dev/null; then
        skip "systemd-analyze is not installed"
        return
    fi
    cargo build --locked
    local units=$work/units complaints
    mkdir -p "$units"
    cp deploy/tidegate.service deploy/tidegate.socket deploy/tidegate-http.socket "$units"
    sed -i "s#/usr/bin/tidegate#$PWD/target/debug/tidegate#" "$units/tidegate.service"
    complaints=$(systemd-analyze verify "$units"/tidegate.service "$units"/*.socket 2>&1) || true
    if [ -n "$complaints" ]; then
        echo "$complaints"
        return 1
    fi
    # 15 is an exposure of 1.5; above it the command fails.
    systemd-analyze security --offline=true --threshold=15 "$units/tidegate.service" | tail -n 1
}

# The hot functions need about as many instructions as they did: counts repeat on any machine, times do not.
instructions() {
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        skip "the counts to compare with are of x86-64 Linux"
        return
    fi
    if ! command -v valgrind >/dev/null; then
        skip "valgrind is not installed"
        return
    fi
    tests/bench/instructions
}

# The debug build and its CAs: Pebble, and an authority of our own. Named scenarios take longer: tests/acme/run NAME.
acme() {
    local program
    if [ "$EUID" -ne 0 ]; then
        skip "tests/acme/run needs root, for a network namespace of its own"
        return
    fi
    if ! unshare --net --mount --pid --fork true 2>/dev/null; then
        skip "no namespaces may be made here"
        return
    fi
    for program in pebble pebble-challtestsrv named cc nsenter; do
        if ! PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null; then
            skip "$program is not installed (tests/setup.sh --without-gateway)"
            return
        fi
    done
    cargo build --locked --bin tidegate --example acme_authority
    # What takes minutes of waiting (renewals, faults, outage, storage, ari, alerts, hostile) is for people: tests/acme/run.
    tests/acme/run pebble three-lines two-processes names persist
}

# The release build in front of the real gateway, with real clients.
gateway() {
    cargo build --locked --release --bin tidegate --example auth
    tests/gateway/run
}

# Reloads under load, stops, memory and keep-alive races of the release build.
measure() {
    cargo build --locked --release --bin tidegate --example gateway
    tests/measure/run
}

# The oldest Rust that Cargo.toml promises. When it is the one in use, all of the above ran on it.
oldest() {
    local promised current
    promised=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    current=$(rustc --version | cut -d' ' -f2)
    case "$current" in
        "$promised" | "$promised".*)
            echo "rustc $current is the oldest supported one: nothing more to check"
            return
            ;;
    esac
    if ! rustup run "$promised" rustc --version >/dev/null 2>&1; then
        if [ "${CI:-}" != true ]; then
            skip "Rust $promised is not installed (rustup toolchain install $promised)"
            return
        fi
        rustup toolchain install --profile minimal "$promised"
    fi
    CARGO_TARGET_DIR=target/oldest cargo "+$promised" check --locked --all-targets
}

# A missing outside program skips a gate here, and fails it in CI.
skip() {
    echo "skipped: $1"
    [ "${CI:-}" != true ]
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$#" -gt 0 ]; then
    gates=("$@")
fi
for gate in "${gates[@]}"; do
    declare -F "$gate" >/dev/null || { echo "no gate \"$gate\"" >&2; exit 2; }
    printf '\n== %s\n' "$gate"
    began=$SECONDS
    # In a process of its own, so that `set -e` holds inside the function.
    ( "$gate" )
    echo "== $gate: fine, $((SECONDS - began)) s"
done
printf '\nall gates are green, %s s\n' "$SECONDS"
