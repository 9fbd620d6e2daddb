#!/usr/bin/env python3
"""Licences, bans and sources of the dependency tree, by the lists of deny.toml.

For machines without cargo-deny. It knows no advisories: those need `cargo deny check advisories`.
"""

import pathlib
import re
import subprocess
import sys
import tomllib

TOP = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    rules = tomllib.loads((TOP / "deny.toml").read_text())
    allowed = set(rules["licenses"]["allow"])
    bans = [ban["crate"].partition("@<") for ban in rules["bans"]["deny"]]
    # `cargo tree` and not `cargo metadata`: the latter lists crates that no feature switches on.
    tree = run("cargo", "tree", "--locked", "--all-features", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}|{l}")
    packages = sorted({line.removesuffix(" (*)") for line in tree.splitlines() if line and "|" in line})

    faults = []
    for package in packages:
        label, licence = package.split("|", 1)
        name, version, *rest = label.replace(" (proc-macro)", "").split(" ", 2)
        version = version.removeprefix("v")
        if not is_allowed(licence, allowed):
            faults.append(f"{name} {version}: licence {licence!r} is not allowed")
        if rest and rest != [f"({TOP})"]:
            faults.append(f"{name} {version}: comes from {rest[0]}")
        for banned, _, floor in bans:
            if name == banned and (not floor or numbers(version) < numbers(floor)):
                faults.append(f"{name} {version}: banned" + (f" below {floor}" if floor else ""))

    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(packages)} packages, {len(faults)} faults")
    return 1 if faults else 0


def run(*command: str) -> str:
    """What a command prints; its failure is ours."""
    return subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.PIPE, text=True).stdout


def numbers(version: str) -> tuple[int, ...]:
    """Major, minor, patch."""
    return tuple(int(part) for part in re.split(r"[-+]", version)[0].split("."))


def is_allowed(expression: str | None, allowed: set[str]) -> bool:
    """Judges an SPDX expression: AND binds tighter than OR, WITH belongs to its licence."""
    if not expression:
        return False
    # "MIT/Apache-2.0" is the spelling of old manifests.
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def either() -> bool:
        nonlocal position
        value = both()
        while position < len(tokens) and tokens[position] == "OR":
            position += 1
            right = both()
            value = value or right
        return value

    def both() -> bool:
        nonlocal position
        value = one()
        while position < len(tokens) and tokens[position] == "AND":
            position += 1
            right = one()
            value = value and right
        return value

    def one() -> bool:
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "(":
            value = either()
            position += 1
            return value
        if tokens[position : position + 1] == ["WITH"]:
            token += " WITH " + tokens[position + 1]
            position += 2
        return token in allowed

    return either()


if __name__ == "__main__":
    sys.exit(main())
