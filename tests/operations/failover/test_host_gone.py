"""The primary's host goes away without a word: its server is in a network namespace whose interface is taken down."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from synapse_ops.domain.failover.evidence import SOFT_WINDOW_S
from synapse_ops.domain.failover.transitions import State
from synapse_ops.local.credentials import write_secret
from synapse_ops.systems.host.processes import make_private_dir, processes_in, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.failover.pair import Pair, new_pair, wait_for
from tests.servers import servers_dir

pytestmark = pytest.mark.scenario
_CLONE_NEWNET = 0x40000000
STREAMS = "select count(*) from pg_stat_wal_receiver where status = 'streaming'"


@dataclass(frozen=True)
class Host:
    """A namespace with an address of its own, and ours on the way to it."""

    name: str
    address: str
    ours: str

    def start(self, server: PgServer) -> None:
        """Start a server in it: a child has the namespace of the thread that forked it."""
        faults: list[BaseException] = []

        def enter_and_start() -> None:
            try:
                self._enter()
                server.start(die_with_parent=False)
            except BaseException as fault:  # noqa: BLE001 - handed to the thread of the test
                faults.append(fault)

        thread = threading.Thread(target=enter_and_start)
        thread.start()
        thread.join()
        if faults:
            raise faults[0]

    def _enter(self) -> None:
        descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"could not enter the namespace {self.name}")
        os.close(descriptor)

    def vanish(self) -> None:
        _ip("-n", self.name, "link", "set", "host0", "down")


@pytest.fixture
def host() -> Iterator[Host]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and the program ip")
    number, device = random.randrange(1 << 14), f"syn{os.getpid()}"
    name, first = f"synapse-{os.getpid()}", int(ip_address("10.213.0.0")) + 4 * number
    made = Host(name, str(ip_address(first + 2)), str(ip_address(first + 1)))
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        pytest.skip("this kernel makes no network namespace for us")
    try:
        _ip("link", "add", device, "type", "veth", "peer", "name", "host0", "netns", name)
        _ip("addr", "add", f"{made.ours}/30", "dev", device)
        _ip("link", "set", device, "up")
        _ip("-n", name, "addr", "add", f"{made.address}/30", "dev", "host0")
        for inside in ("lo", "host0"):
            _ip("-n", name, "link", "set", inside, "up")
        yield made
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", device)  # the namespace lives on as long as a connection in it waits for its end
        _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, check=True)


@contextmanager
def pair_of(host: Host, tools: PgTools, bucket_url: str, access: StoreAccess) -> Iterator[Pair]:
    """Yield a pair whose primary runs on that host, reached by its address."""
    folder, identity = servers_dir("gone"), server_identity()
    folder.chmod(0o755)
    make_private_dir(folder / "data", identity)
    tls = make_private_dir(folder / "data" / "tls", identity)
    certificate, key = _certificate("127.0.0.1", host.address)
    write_secret(tls / "server.crt", certificate, identity)
    write_secret(tls / "server.key", key, identity)
    (folder / "ca.crt").write_text(certificate)
    try:
        with new_pair(tools, folder, bucket_url, access) as pair:
            primary, standby = pair.servers["db-primary"], pair.servers["db-standby"]
            primary.stop("fast")
            primary.listen = (*primary.listen, host.address)
            primary.hba = (*primary.hba, *(line.replace("127.0.0.1/32", f"{host.ours}/32") for line in primary.hba[1:]))
            host.start(primary)
            through = _ask(standby, "show primary_conninfo").replace("host=127", f"hostaddr={host.address} host=127")
            _ask(standby, "alter system set primary_conninfo = '{}'".format(through.replace("'", "''")))
            _ask(standby, "select pg_reload_conf()")
            wait_for(lambda: _ask(standby, STREAMS) == "1", "it streams")
            pair.addresses["db-primary"] = f"{host.address}:{primary.port}"
            yield pair
    finally:
        shutil.rmtree(folder)


def _ask(server: PgServer, query: str) -> str:
    conninfo = server.conninfo("postgres", "postgres", password="super")  # by its socket, whatever its network
    with psycopg.connect(conninfo, autocommit=True) as connection:
        found = connection.execute(query)  # type: ignore[call-overload]
        return str(found.fetchone()[0]) if found.description else ""


def _certificate(*addresses: str) -> tuple[str, str]:
    """Return a self-signed certificate for addresses and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a pair on two hosts")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(one)) for one in addresses]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def test_a_host_that_is_gone_without_a_fin_ends_refused_with_the_command(
    host: Host, server_tools: PgTools, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Its server lives on there, and writes: whoever has no authority over it promotes nobody, and says what a person
    can do.
    """
    with pair_of(host, server_tools, bucket_url, object_store_access) as pair:
        primary = pair.servers["db-primary"]
        with pair.watched(armed=False, here=["db-standby"]) as watch:
            wait_for(lambda: watch._roles == ("db-primary", "db-standby"), "both nodes answer")
            host.vanish()
            incident = pair.ended()
        assert processes_in(primary.data_dir)
        _ask(primary, "create table written_meanwhile (n int)")
        assert _ask(pair.servers["db-standby"], "select pg_is_in_recovery()") == "True"

    facts = incident.facts
    assert incident.state is State.REFUSED
    assert facts["window_s"] == SOFT_WINDOW_S
    assert f"nothing on this host may fence db-primary (primary at {facts['primary_lsn']}" in facts["reason"]
    command = f"failover fence-here --incident {incident.id} --node db-primary --timeline {facts['timeline']}"
    assert command in facts["reason"]
