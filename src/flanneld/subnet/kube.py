"""The subnet manager of -kube-subnet-mgr: leases are nodes of Kubernetes, whose controller manager deals out subnets.

What a machine announces are annotations of its node. `Follower` lists and watches the nodes in a thread; `Keeper`
writes the own node's annotations and condition, and looks at the configuration's file, in another.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from typing import Any, Callable, Collection, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.errors import ConfigError, FlanneldError, LeaseError, UsageError
from flanneld.kube.client import WATCH, Event, KubeClient
from flanneld.kube.errors import GoneError, KubeError
from flanneld.kube.kubeconfig import access, check_server
from flanneld.kube.node import (
    View,
    annotation_prefix,
    annotations_of,
    announced,
    condition,
    lease_of,
    name_of,
    own_subnets,
    prescribed,
    version_of,
    view,
)
from flanneld.log import Repeated, logger
from flanneld.metrics import FIGURES
from flanneld.options import KubeOptions
from flanneld.subnet.config import Network, NetworkConfig
from flanneld.subnet.lease import Attributes, Holding, Lease
from flanneld.subnet.manager import Overrides, Picture, SubnetManager

CONFIG_EVERY = 10.0
"""Seconds between looks at the file of the network configuration."""

GRACE = 30.0
"""Seconds that the own node, or its pod CIDR, may be away: a kubelet that is restarted registers its node anew."""

OUTAGE = 10.0
"""Seconds without the API server after which all nodes are read anew, some time later: see `audit_delay`."""

_LISTED = 2000.0  # nodes that all machines together may read in a second when nothing is known to be wrong

_PAUSE = (0.2, 10.0)  # seconds between attempts to follow the nodes: at first, and after many
_FRESH = 1.0  # seconds that the own node is not read again: the daemon asks for it several times in a row
_STEADY = 5.0  # seconds after which a watch counts as one that works
_AWAY_EVERY = 1.0  # seconds between looks for the own node while it is away
_REWRITE = (2.0, 60.0)  # seconds between writes of what somebody else keeps changing: at first, and after many

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_Json = Mapping[str, Any]


def check_options(options: KubeOptions, environ: Mapping[str, str]) -> None:
    """Raise UsageError for flags and variables that cannot work, without looking at any file."""
    annotation_prefix(options.annotation_prefix)
    if options.api_url:
        check_server(options.api_url, "-kube-api-url")
    if not environ.get("NODE_NAME") and not (environ.get("POD_NAME") and environ.get("POD_NAMESPACE")):
        raise UsageError(
            "-kube-subnet-mgr does not know its node: env variables POD_NAME and POD_NAMESPACE must be set",
            "or NODE_NAME, which saves a request",
        )
    for variable in ("NODE_NAME", "POD_NAME", "POD_NAMESPACE"):
        value = environ.get(variable, "")
        if value and (len(value) > 253 or not _NAME.fullmatch(value)):
            raise UsageError(f"{variable} is {value!r:.300}", "names in Kubernetes have a-z, 0-9, - and . only")


class KubeSubnetManager(SubnetManager):
    """Leases as nodes; they are named by the node's name.

    The constructor raises UsageError for what cannot work; it asks nobody. Before `start` every method asks the API
    server, and raises KubeError when it cannot be asked.
    """

    name = "Kubernetes"

    def __init__(self, options: KubeOptions, environ: Mapping[str, str]) -> None:
        super().__init__()
        check_options(options, environ)
        self._options = options
        self._environ = environ
        self._prefix = annotation_prefix(options.annotation_prefix)
        self._access = access(options.api_url, options.kubeconfig, environ)
        if self._access.insecure or self._access.server.startswith("http:"):
            logger.warning("the API server is not verified by a certificate: whoever is in between owns the network")
        self._client = KubeClient(self._access)
        self._node = self.own_name = environ.get("NODE_NAME", "")
        self._versions: Collection[int] = (4, 6)
        self._keeper: Optional[Keeper] = None
        self._lock = threading.Lock()
        self._annotations: Mapping[str, str] = {}
        self._read_at = -_FRESH
        self._leases: Optional[Mapping[str, Lease]] = None
        self._config = ""
        self._troubles: Dict[str, str] = {}

    def config_text(self) -> str:
        """Return the content of -net-config-path."""
        path = self._options.net_config_path
        try:
            self._config = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"failed to read net conf: {path}: {reason}",
                "mount the ConfigMap with net-conf.json there, or set -net-config-path",
            ) from None
        return self._config

    def overrides(self) -> Overrides:
        """Return the addresses that the node's annotations prescribe: read before `start`, then as watched."""
        if not self._keeper and time.monotonic() - self._read_at >= _FRESH:
            self._own_node()
        return prescribed(self._annotations, self._prefix)

    def leases(self) -> Mapping[str, Lease]:
        """Return all leases by the node's name. The own node's old annotations are among them."""
        book = Book(self._prefix, self._versions, self._node)
        for page in self._client.nodes():
            book.add(page.nodes)
        return book.leases

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Sequence[Network]) -> Holding:
        """Take the own node's pod CIDRs and announce `attributes`; `previous` does not matter here."""
        del previous
        node = self._own_node()
        subnets = own_subnets(node, config)
        self._versions = tuple(config.networks)
        patch = missing_annotations(annotations_of(node), announced(attributes, self._prefix))
        if patch:
            self._client.patch_node(self._node, patch)
        lease = Lease(subnets, attributes, permanent=True)
        logger.info("node %s has the pod CIDRs %s", self._node, lease.name)
        return Holding(lease, None)

    def start(self, holding: Holding) -> None:
        """Follow the nodes and keep the own one."""
        self._client.close()
        doors = Doors(self._publish, self._reread, self._say, self.lost)
        self._keeper = Keeper(
            KubeClient(self._access),
            self._node,
            self._prefix,
            holding.lease,
            doors,
            set_condition=self._options.set_network_unavailable,
        )
        book = Book(self._prefix, self._versions, self._node)
        Follower(KubeClient(self._access), book, doors, self._saw).start()
        self._keeper.start()

    def announce(self, attributes: Attributes) -> None:
        """Have the own node's annotations say this from now on."""
        if self._keeper:
            self._keeper.announce(attributes)

    def check(self) -> None:
        """Have the own node looked at."""
        if self._keeper:
            self._keeper.poke()

    def ready(self) -> None:
        """Have the node's condition say that its network is there."""
        if self._keeper:
            self._keeper.ready()

    def _own_node(self) -> _Json:
        try:
            node = self._client.node(self._name())
        except KubeError as error:
            if error.status != 404:
                raise
            raise LeaseError(
                f"there is no node {json.dumps(self._node)}",
                "the kubelet registers it; NODE_NAME must be the name that the kubelet uses",
            ) from None
        self._annotations, self._read_at = annotations_of(node), time.monotonic()
        return node

    def _name(self) -> str:
        if not self._node:
            name, namespace = self._environ["POD_NAME"], self._environ["POD_NAMESPACE"]
            try:
                pod = self._client.pod(namespace, name)
            except KubeError as error:
                if error.status != 404:
                    raise
                raise LeaseError(
                    f"there is no pod {name} in the namespace {namespace}",
                    "POD_NAME and POD_NAMESPACE must be those of flanneld's own pod",
                ) from None
            self._node = self.own_name = str((pod.get("spec") or {}).get("nodeName") or "")
            if not self._node:
                raise LeaseError(f"the pod {namespace}/{name} has no node yet")
        return self._node

    def _saw(self, own: Optional[View]) -> None:
        """The follower has seen the own node; None when there is none."""
        if own is not None and own.annotations != self._annotations:
            before, self._annotations = self._annotations, own.annotations
            if _inputs(before, self._prefix) != _inputs(own.annotations, self._prefix):
                logger.info("the addresses that annotations prescribe for this machine were changed")
                with self._lock:
                    self._replace()
        if self._keeper:
            self._keeper.saw(own)

    def _publish(self, leases: Mapping[str, Lease]) -> None:
        with self._lock:
            self._leases = leases
            self._replace()

    def _reread(self) -> None:
        """Look at the configuration's file; raises ConfigError when it cannot be read, then the last content stays."""
        before = self._config
        if self.config_text() != before:
            with self._lock:
                self._replace()

    def _replace(self) -> None:
        if self._leases is not None:
            self.picture = Picture(self._leases, self._config)
            self.changed()

    def _say(self, who: str, trouble: str) -> None:
        with self._lock:
            self._troubles[who] = trouble
            self.trouble = "; ".join(filter(None, self._troubles.values()))


class Doors(NamedTuple):
    """What the threads tell the manager: new leases, a look at the configuration, (who, trouble), and a lost lease."""

    publish: Callable[[Mapping[str, Lease]], None]
    reread: Callable[[], None]
    say: Callable[[str, str], None]
    lost: Callable[[str], None]


class Book:
    """The leases among the nodes, as lists and events tell them. `leases` is replaced, never changed."""

    def __init__(self, prefix: str, versions: Collection[int], own_name: str) -> None:
        self._prefix = prefix
        self._versions = versions
        self._own_name = own_name
        self._named: Dict[str, str] = {}
        self._named_before: Dict[str, str] = {}
        self.leases: Mapping[str, Lease] = {}
        self.own: Optional[_Json] = None

    def add(self, nodes: Sequence[_Json]) -> None:
        """Take nodes of a list."""
        leases = dict(self.leases)
        for node in nodes:
            name = name_of(node)
            if name == self._own_name:
                self.own = node
            lease = self._lease(name, node)
            if lease is not None:
                leases[name] = lease
        self.leases = leases

    def clear(self) -> None:
        """Forget everything: a list follows."""
        self.leases, self.own = {}, None
        self._named_before, self._named = self._named, {}

    def apply(self, event: Event) -> bool:
        """Take an event; True when a lease has changed by it."""
        name = name_of(event.node)
        if event.kind not in {"ADDED", "MODIFIED", "DELETED"} or not name:
            return False
        gone = event.kind == "DELETED"
        if name == self._own_name:
            self.own = None if gone else event.node
        lease = None if gone else self._lease(name, event.node)
        if gone:
            self._named.pop(name, None)
        if lease == self.leases.get(name):
            return False
        leases = dict(self.leases)
        if lease is None:
            del leases[name]
        else:
            leases[name] = lease
        self.leases = leases
        return True

    def _lease(self, name: str, node: _Json) -> Optional[Lease]:
        try:
            lease = lease_of(node, self._prefix, self._versions)
        except LookupError:
            self._named.pop(name, None)
            return None
        except ValueError as error:
            known = self._named.get(name, self._named_before.get(name))
            self._named[name] = str(error)
            if known != str(error):
                logger.warning("ignoring the node %s: %s", name, error)
            return None
        self._named.pop(name, None)
        return lease


class Follower(threading.Thread):
    """Follows the nodes by a list and then watches, for ever. `saw` gets the own node after each look at it.

    While the API server is away, and while the own node is not among the nodes, the last picture stays: an API server
    whose data was lost must not take the overlay down.
    """

    def __init__(self, client: KubeClient, book: Book, doors: Doors, saw: Callable[[Optional[View]], None]) -> None:
        super().__init__(name="follower", daemon=True)
        self._client = client
        self._book = book
        self._doors = doors
        self._saw = saw
        self._trouble = Repeated()
        self._version = ""
        self._unpublished = False
        self._opened = self._away_since = 0.0
        self._audit_at = float("inf")

    def run(self) -> None:
        """Follow for ever; failures are tried again at lengthening intervals."""
        pause, doubtful = _PAUSE[0], False
        while True:
            self._opened = float("inf")
            try:
                self._catch_up(doubtful=doubtful)
                self._watch()
                failed = False
            except KubeError as error:
                failed = True
                FIGURES.add("flannel_watch_restarts_total")
                self._take(error)
            lived = time.monotonic() - self._opened
            if lived >= _STEADY:
                pause = _PAUSE[0]
            # An API server also ends watches early when etcd has frightened it.
            doubtful = failed or lived < WATCH / 2
            if doubtful:
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not all machines at the same moment
                pause = min(pause * 2, _PAUSE[1])

    def _take(self, error: KubeError) -> None:
        if isinstance(error, GoneError):
            logger.info("reading all nodes anew: %s", error.message)
            self._version = ""
            return
        self._away_since = self._away_since or time.monotonic()
        text = f"nodes cannot be watched, the network stays as it is: {error}"
        self._doors.say("nodes", text)
        self._trouble.warn(text)

    def _catch_up(self, *, doubtful: bool) -> None:
        """Read all nodes if they are not known up to a version that a watch can go on from.

        After a long outage they are read anew as well, but not by all machines at once: etcd may have been restored
        from a backup meanwhile, and have given out the numbers of its versions twice.
        """
        if self._version and time.monotonic() >= self._audit_at:
            logger.info("reading all nodes anew: the API server was away for a while")
            self._version = ""
        if self._version and doubtful and _before(self._client.version(), self._version):
            logger.warning("the API server has an older state than before; reading all nodes anew")
            self._version = ""
        if self._version:
            return
        version = ""
        self._book.clear()
        for page in self._client.nodes():
            self._book.add(page.nodes)
            version = page.version
        self._version = version
        self._audit_at = float("inf")
        self._unpublished = True
        self._look_at_own()
        self._publish()

    def _watch(self) -> None:
        due = self._audit_at - time.monotonic()
        for event in self._client.watch_nodes(self._version, max(1, int(min(WATCH, due)))):
            if event.kind == "OPEN":
                self._opened = time.monotonic()
                if self._away_since and self._opened - self._away_since >= OUTAGE:
                    self._audit_at = min(self._audit_at, self._opened + audit_delay(len(self._book.leases)))
                self._away_since = 0.0
                self._doors.say("nodes", "")
                self._trouble.clear("the API server answers again, nodes are watched")
                continue
            before = self._book.own
            self._unpublished |= self._book.apply(event)
            self._version = version_of(event.node) or self._version
            if self._book.own is not before:
                self._look_at_own()
            self._publish()

    def _publish(self) -> None:
        if self._unpublished and self._book.own is not None:
            self._doors.publish(self._book.leases)
            self._unpublished = False

    def _look_at_own(self) -> None:
        try:
            self._saw(view(self._book.own) if self._book.own is not None else None)
        except LeaseError as error:
            self._trouble.warn(str(error))


def audit_delay(nodes: int) -> float:
    """Return after how many seconds a machine reads all nodes when nothing is known to be wrong.

    Every machine reads what all are: for 100 nodes within 5 s, for 1000 within 8 minutes.
    """
    return random.uniform(0.0, nodes * nodes / _LISTED)  # noqa: S311 - not all machines at the same moment


class Keeper(threading.Thread):
    """Keeps the own node's annotations and condition, and looks at the configuration's file.

    `lost` is called once, when the node's pod CIDRs are others than those leased, or it is gone for GRACE seconds.
    """

    def __init__(
        self, client: KubeClient, node: str, prefix: str, lease: Lease, doors: Doors, *, set_condition: bool
    ) -> None:
        super().__init__(name="keeper", daemon=True)
        self._client = client
        self._node = node
        self._prefix = prefix
        self._lease = lease
        self._doors = doors
        self._set_condition = set_condition
        self._wanted = announced(lease.attributes, prefix)
        self._poked = threading.Event()
        self._ready = False
        self._condition_of = ""
        self._away, self._away_since = "", 0.0
        self._trouble, self._config_trouble = Repeated(), Repeated()

    def announce(self, attributes: Attributes) -> None:
        """Have this written from now on."""
        self._wanted = announced(attributes, self._prefix)
        self.poke()

    def ready(self) -> None:
        """Have the condition written, once and whenever it is missing."""
        self._ready = True
        self.poke()

    def saw(self, own: Optional[View]) -> None:
        """Take note of the own node as the follower has seen it, which may be older than what was written last."""
        if own is None or self._subnets(own) != self._leased() or self._patch(own):
            self.poke()

    def poke(self) -> None:
        """Have the own node looked at soon."""
        self._poked.set()

    def run(self) -> None:
        """Keep for ever, or until the lease is lost."""
        due, earliest = time.monotonic(), 0.0
        retry, rewrite = _PAUSE[0], _REWRITE[0]
        lost = ""
        while not lost:
            if self._poked.wait(max(0.0, min(CONFIG_EVERY, due - time.monotonic()))):
                self._poked.clear()
                due = min(due, earliest)
            self._look_at_config()
            now = time.monotonic()
            if now < due:
                continue
            try:
                lost, wrote = self._look(now)
            except FlanneldError as error:
                text = f"the own node cannot be looked after: {error}"
                self._doors.say("own node", text)
                self._trouble.warn(text)
                due = earliest = now + retry
                retry = min(retry * 2, _PAUSE[1])
                continue
            self._doors.say("own node", self._away)
            self._trouble.clear("the own node is looked after again")
            due, retry = now + _AWAY_EVERY if self._away_since else float("inf"), _PAUSE[0]
            # Two flanneld with one node name must not overwrite each other at full speed.
            if wrote:
                earliest, rewrite = now + rewrite, min(rewrite * 2, _REWRITE[1])
            elif now - earliest > _REWRITE[1]:
                rewrite = _REWRITE[0]
        self._client.close()
        self._doors.lost(lost)

    def _look_at_config(self) -> None:
        try:
            self._doors.reread()
            self._config_trouble.clear("the network configuration can be read again")
        except ConfigError as error:
            self._config_trouble.warn(f"the network configuration stays as it was: {error}")

    def _look(self, now: float) -> Tuple[str, bool]:
        """Return (why the lease is lost, whether something had to be written)."""
        own: Optional[View]
        try:
            own = view(self._client.node(self._node))
        except KubeError as error:
            if error.status != 404:
                raise
            own = None
        leased = self._leased()
        subnets = self._subnets(own) if own is not None else {}
        if own is None or not subnets.keys() >= leased.keys():
            what = f"node {self._node} {'has no pod CIDR any more' if own else 'was deleted'}"
            return self._wait_for(now, what), False
        self._away, self._away_since = "", 0.0
        if subnets != leased:
            was, now_is = (" and ".join(map(str, one.values())) for one in (leased, subnets))
            return (
                f"the pod CIDR of node {self._node} was changed from {was} to {now_is}"
                " (flanneld restarts with the new one; restart the pods that use the old one)"
            ), False
        patch = self._patch(own)
        if patch:
            if "metadata" in patch:
                logger.info("writing the annotations of node %s", self._node)
            self._client.patch_node(self._node, patch)
            if "status" in patch:
                self._condition_of = own.uid
        return "", bool(patch)

    def _wait_for(self, now: float, what: str) -> str:
        self._away = what
        if not self._away_since:
            self._away_since = now
            logger.warning("%s; waiting %g s for it to come back, the network stays as it is", what, GRACE)
        if now - self._away_since < GRACE:
            return ""
        return f"{what} (flanneld starts anew when the kubelet has registered it)"

    def _leased(self) -> Dict[int, Network]:
        return {subnet.version: subnet for subnet in self._lease.subnets}

    def _subnets(self, own: View) -> Dict[int, Network]:
        leased = self._leased()
        return {subnet.version: subnet for subnet in own.subnets if subnet.version in leased}

    def _patch(self, own: View) -> Dict[str, Any]:
        """Return what has to be written so that the node says what it should, empty when it does."""
        patch = missing_annotations(own.annotations, self._wanted)
        # Once for each node of this name: the times in it are those of this run, as with the Go daemon.
        if self._set_condition and self._ready and (not own.network_available or self._condition_of != own.uid):
            patch.update(condition(time.time()))
        return patch


def missing_annotations(there: Mapping[str, str], wanted: Mapping[str, Optional[str]]) -> Dict[str, Any]:
    """Return the patch that makes a node have these annotations, and not those that are None; empty when it has."""
    differing = {key: value for key, value in wanted.items() if there.get(key) != value}
    return {"metadata": {"annotations": differing}} if differing else {}


def _inputs(annotations: Mapping[str, str], prefix: str) -> Dict[str, str]:
    words = ("public-ip-overwrite", "public-ipv6-overwrite", "node-public-ip", "node-public-ipv6")
    return {word: annotations[prefix + word] for word in words if prefix + word in annotations}


def _before(version: str, other: str) -> bool:
    """Tell whether a version is older than another; those of etcd are numbers, of others nothing is known."""
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)
