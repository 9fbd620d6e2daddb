#!/usr/bin/env python3
"""Hook programs of the tests, as an operator would write them.

    hook.py challtestsrv URL KEPT present|cleanup FQDN VALUE   Pebble's DNS server; KEPT is a file
    hook.py names URL present|cleanup FQDN VALUE               the test's DNS server
    hook.py event PIPE                                         one JSON document on stdin, passed on as a line
"""

import fcntl
import json
import sys
import urllib.request


def main():
    match sys.argv[1:]:
        case ["challtestsrv", url, kept, action, name, value]:
            challtestsrv(url, kept, action, name, value)
        case ["names", url, action, name, value]:
            path = {"present": "/add", "cleanup": "/remove"}[action]
            post(url + path, {"name": name, "value": value})
        case ["event", pipe]:
            line = json.dumps(json.load(sys.stdin)) + "\n"
            # Short enough to be written whole: lines of two events never mix.
            with open(pipe, "ab", buffering=0) as out:
                out.write(line.encode())
        case _:
            sys.exit(f"usage: {__doc__}")


def challtestsrv(url, kept, action, name, value):
    """The server can only clear all values of a name, so what is there is kept beside it."""
    with open(kept, "a+") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        kept.seek(0)
        records = json.loads(kept.read() or "{}")
        values = records.setdefault(name, [])
        if action == "present":
            values.append(value)
            post(f"{url}/set-txt", {"host": name, "value": value})
        else:
            values.remove(value)
            post(f"{url}/clear-txt", {"host": name})
            for other in values:
                post(f"{url}/set-txt", {"host": name, "value": other})
        kept.truncate(0)
        kept.write(json.dumps(records))


def post(url, body):
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=10).close()


if __name__ == "__main__":
    main()
