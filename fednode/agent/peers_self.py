"""What this node says of itself to peers: stamps, its signed record, its load reports."""

from pathlib import Path
from typing import Final

from fednode.config import FederationSection, NodeSection
from fednode.disk import Identity, next_incarnation
from fednode.identity.envelope import Envelope
from fednode.model.errors import WireError
from fednode.model.load import Accept, LoadReport, LoadRow, Stamp
from fednode.model.peer import Address, NodeRecord, ServedModel
from fednode.net.addresses import split
from fednode.wire.records import RECORD_TTL_S, open_record, seal_record

JUMPS_MAX: Final = 3  # of the incarnation: more mean that a copy of this node runs elsewhere


class OwnWord:
    """One counter for everything this node signs or reports. The incarnation is on disk before it is used.

    Raises `DataDirError` when that cannot be written.
    """

    def __init__(self, identity: Identity, node: NodeSection, section: FederationSection, data_dir: Path) -> None:
        self._identity = identity
        self._node = node
        self._section = section
        self._data_dir = data_dir
        self._version = 0
        self._jumps = 0
        self._signed: Envelope | None = None
        self.incarnation = next_incarnation(data_dir)
        self.models: tuple[ServedModel, ...] = ()  # as in the newest record
        self.link_port = 0  # as bound; what the world sees may differ (advertise_ports)
        self.join_port = 0
        self.serve_port = split(section.serve)[1]

    def stamp(self) -> Stamp:
        """Return the next stamp."""
        self._version += 1
        return Stamp(self.incarnation, self._version)

    def record(self) -> Envelope:
        """Return our newest signed record."""
        return self._signed or self.announce(self.models)

    def announce(self, models: tuple[ServedModel, ...]) -> Envelope:
        """Sign and return a new record that says we serve `models`."""
        self.models = models
        ports = self._section.advertise_ports
        link = ports.link if ports else self.link_port
        serve = ports.serve if ports else self.serve_port
        join = ports.join if ports else self.join_port
        record = NodeRecord(
            node=self._identity.node,
            at=self.stamp(),
            root=self._identity.root,
            name=self._node.name,
            collective=self._node.collective,
            city=self._node.city,
            tls_certs=(self._identity.tls_cert,),
            # with nothing to advertise: the ports, at whatever host we were reached
            addresses=tuple(Address(host, link, serve, join) for host in self._section.advertise or ("",)),
            models=models,
            ttl_s=RECORD_TTL_S,
        )
        self._signed = seal_record(record, network=self._identity.network, by=self._identity)
        return self._signed

    def outlive(self, newest: Envelope) -> bool:
        """Jump past a record of ours that is newer than we are: the disk was restored from a backup.

        True when that happened and a new record should be announced. Raises `WireError` ("clone") when it happens so
        often that another copy of this node must be running.
        """
        if newest == self._signed:
            return False
        past = open_record(newest, network=self._identity.network, held=None)
        if past.node != self._identity.node or past.at <= Stamp(self.incarnation, self._version):
            return False
        self._jumps += 1
        if self._jumps > JUMPS_MAX:
            raise WireError("clone", "another copy of this node is running with the same key: stop one of them")
        self.incarnation = next_incarnation(self._data_dir, above=past.at.inc)
        self._version = 0
        return True

    def report(self, rows: tuple[LoadRow, ...], accept: Accept) -> LoadReport:
        """Return a load report; accepting nobody means draining."""
        return LoadReport(at=self.stamp(), rows=rows, accept=accept, draining=accept is Accept.NOBODY)
