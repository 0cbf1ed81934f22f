"""Send real packets through a ruleset, between two network namespaces. A script, run in a namespace of its own:

    unshare --net [--map-root-user] python packets.py RULESET TABLE

RULESET is loaded here, where every port of TABLE listens on IPv4 and IPv6; a second namespace at the other end of a
wire has all source addresses of TABLE and opens one TCP connection a row. TABLE: rows of verdict (accept or drop),
source address, port. Status 0: every row came out so. 1: one did not. 3: no such namespaces can be made here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

UNJUDGED_STATUS = 3
SERVER = {4: "198.18.0.1", 6: "fd53:796e:6170::1"}  # a range for benchmarks; a unique local prefix
WAIT_S = 2.5  # the kernel sends a lost SYN again after one second
AT_ONCE = 400
BACKLOG = 1024

Row = tuple[str, str, int]


def rows_of(table: Path) -> list[Row]:
    """Return the rows of a table; lines with # say what it is."""
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [(row[0], row[1], int(row[2])) for row in rows]


def _ip(*commands: str) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(commands), text=True, capture_output=True, check=False, timeout=30
    )
    if done.returncode:
        print(f"no wire between namespaces can be made: {done.stderr.strip()[:300]}")
        sys.exit(UNJUDGED_STATUS)


def serve(ruleset: Path, table: Path) -> int:
    """Load the ruleset, listen, have the other namespace send, and judge what arrived."""
    rows = rows_of(table)
    far = subprocess.Popen(["unshare", "--net", "sleep", "120"])
    try:
        _await_namespace(far.pid)
        _ip(f"link add wire type veth peer name wire netns {far.pid}", "link set lo up")
        _ip(*(_address(own) for own in SERVER.values()), "link set wire up")
        _ip(*(f"route add {half} dev wire" for half in ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")))
        loaded = subprocess.run(["nft", "-f", str(ruleset)], capture_output=True, text=True, check=False, timeout=30)
        if loaded.returncode:
            print(loaded.stderr.strip())
            return 1
        with contextlib.ExitStack() as stack:
            for port in {row[2] for row in rows}:
                stack.enter_context(
                    socket.create_server(("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
                )
            client = [
                "nsenter",
                "--target",
                str(far.pid),
                "--net",
                sys.executable,
                "-I",
                __file__,
                "--send",
                str(table),
            ]
            sent = subprocess.run(client, capture_output=True, text=True, check=False, timeout=90)
        if sent.returncode:
            print(sent.stdout.strip() or sent.stderr.strip()[-300:])
            return sent.returncode
        return _judge(rows, json.loads(sent.stdout))
    finally:
        far.kill()
        far.wait()


def _judge(rows: list[Row], arrived: list[bool]) -> int:
    wrong = 0
    for (verdict, source, port), is_open in zip(rows, arrived, strict=True):
        if is_open != (verdict == "accept"):
            wrong += 1
            print(f"port {port} from {source}: {'let in' if is_open else 'kept out'}, the spec says {verdict}")
    return int(bool(wrong))


def _address(address: str) -> str:
    return f"addr add {address}/128 dev wire nodad" if ":" in address else f"addr add {address}/32 dev wire"


def _await_namespace(pid: int) -> None:
    """Wait until the other process has left our namespace."""
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"):  # noqa: PTH115 - not a file
                return
        time.sleep(0.01)
    print("no second network namespace can be made")
    sys.exit(UNJUDGED_STATUS)


def send(table: Path) -> int:
    """Open a connection a row, and print which were answered, as a list of true and false."""
    rows = rows_of(table)
    sources = sorted({row[1] for row in rows})
    _ip("link set lo up", "link set wire up", *(_address(source) for source in sources))
    _ip(f"route add {SERVER[4]}/32 dev wire", f"route add {SERVER[6]}/128 dev wire")
    arrived: list[bool] = []
    for start in range(0, len(rows), AT_ONCE):
        arrived += _knock(rows[start : start + AT_ONCE])
    print(json.dumps(arrived))
    return 0


def _knock(rows: list[Row]) -> list[bool]:
    opened = [False] * len(rows)
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for number, (_, source, port) in enumerate(rows):
            version = ipaddress.ip_address(source).version
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            knocker = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            knocker.setblocking(False)
            knocker.bind((source, 0))
            knocker.connect_ex((SERVER[version], port))
            selector.register(knocker, selectors.EVENT_WRITE, number)
        ends_s = time.monotonic() + WAIT_S
        while selector.get_map() and (left_s := ends_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                knocker = key.fileobj  # type: ignore[assignment]
                opened[key.data] = knocker.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                selector.unregister(knocker)
    return opened


if __name__ == "__main__":
    sys.exit(send(Path(sys.argv[2])) if sys.argv[1] == "--send" else serve(Path(sys.argv[1]), Path(sys.argv[2])))
