"""A page's commands run as they stand there, by PostgreSQL's programs and those of any host: none of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from synapse_ops.systems.host.processes import ServerIdentity, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess

DOCS = Path(__file__).parents[3] / "docs"
TIMEOUT_S = 120

# Stand-ins for hosts without aws, age and zstd: exactly the calls that the pages make.
AWS = """
import sys
from pathlib import Path
import boto3
import os
url = next(word for word in sys.argv if word.startswith("s3://"))
bucket, _, prefix = url.removeprefix("s3://").partition("/")
client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
    for row in page.get("Contents", ()):
        if sys.argv[2] == "ls":
            print(row["LastModified"], row["Size"], row["Key"])
            continue
        path = Path(sys.argv[-1], row["Key"].removeprefix(prefix))
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, row["Key"], str(path))
"""
AGE = """
import sys
from pathlib import Path
import pyrage
_, _, _, identity, _, output, source = sys.argv
keys = [pyrage.x25519.Identity.from_str(Path(identity).read_text().strip())]
Path(output).write_bytes(pyrage.decrypt(Path(source).read_bytes(), keys))
"""
ZSTD = """
import sys, zstandard
with open(sys.argv[-1], "rb") as source:
    zstandard.ZstdDecompressor().copy_stream(source, sys.stdout.buffer)
"""


def commands_of(page: str, without: str) -> str:
    """Return every shell block in order; run as any user, so peer authentication becomes trust, as the page allows.

    without: a word; the block that holds it is left out.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    blocks = [block for block in blocks if not without or without not in block]
    script = "set -euo pipefail\n" + "\n".join(blocks)
    return script.replace("--auth=peer", "--auth=trust").replace("local all all peer", "local all all trust")


def environment_of(folder: Path, tools: PgTools, access: StoreAccess) -> dict[str, str]:
    """Return the variables with which the pages' commands find the programs and the store."""
    (folder / "tools").mkdir(mode=0o755)
    return {
        "PATH": f"{_stand_ins(folder / 'tools', tools, server_identity())}:{tools.bin_dir}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "AWS_ACCESS_KEY_ID": access.access_key or "",
        "AWS_SECRET_ACCESS_KEY": access.secret_key or "",
        "AWS_ENDPOINT_URL": access.endpoint or "",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def run_page(
    page: str, environment: Mapping[str, str], folder: Path, *, without: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a page's commands to their end, with a time limit."""
    return subprocess.run(
        ["bash", "-c", commands_of(page, without)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def stop_server(environment: Mapping[str, str]) -> None:
    """Stop what a page has started."""
    stop = ["pg_ctl", "--pgdata", environment["PGDATA"], "--mode=immediate", "stop"]
    subprocess.run(["env", *stop], env=environment, cwd="/", capture_output=True, check=False)


def _stand_ins(folder: Path, tools: PgTools, identity: ServerIdentity | None) -> Path:
    """Write the stand-ins where the host has none of that name, and return the folder for PATH.

    As root, what PostgreSQL refuses to run as root is run as the servers' user, who is given the files first.
    """
    programs = {"aws": AWS, "age": AGE, "zstd": ZSTD}
    scripts = {name: f"#!{sys.executable}\n{text}" for name, text in programs.items() if shutil.which(name) is None}
    if identity is not None:
        become = f"setpriv --reuid={identity.uid} --regid={identity.gid} --clear-groups"
        give = f'chown -RP {identity.uid}:{identity.gid} "$PGDATA" ${{SPACES:-}} "$SCRATCH" 2> /dev/null'
        for name in ("initdb", "pg_ctl"):
            scripts[name] = f'#!/bin/sh\ncd / && {give}; exec {become} {tools.path(name)} "$@"\n'
    for name, text in scripts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    return folder
