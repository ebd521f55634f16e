"""The daemon: acquires a lease, then keeps the overlay as the leases say until it is told to stop.

Threads: the main one owns the kernel's network and the backend; the subnet manager's follow the leases and keep the
own one; one more checks the traffic rules. They meet in immutable pictures and a wake-up pipe only.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import time
from typing import Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from flanneld import dataplane as dp
from flanneld import state
from flanneld.backend.base import Backend, Existing, Underlay
from flanneld.backend.registry import check_backend, make_backend
from flanneld.errors import ConfigError, FlanneldError, LeaseError, UsageError
from flanneld.guard import RulesGuard
from flanneld.health import Answer, probes, serve
from flanneld.log import Repeated, logger
from flanneld.metrics import FIGURES
from flanneld.net import interfaces
from flanneld.net.kernel import Kernel, Reports
from flanneld.notify import notify, watchdog_interval
from flanneld.options import Options
from flanneld.outputs import SubnetFile, previous_networks, previous_subnets
from flanneld.overlay import Overlay
from flanneld.publish import Publisher, StatusSocket
from flanneld.rules.engine import make_rules
from flanneld.rules.spec import RuleSpec
from flanneld.schedule import Schedule
from flanneld.subnet.change import refusals, remark
from flanneld.subnet.config import NetworkConfig, parse_config
from flanneld.subnet.lease import Attributes, Holding, Lease, format_key
from flanneld.subnet.manager import Overrides, Picture, SubnetManager
from flanneld.threads import guard_threads
from flanneld.wake import Wake

LOOK = 10.0
"""Seconds between looks at kernel, interface and files when nothing is reported; longer where a look takes long."""

_PAUSE = (0.5, 5.0)  # seconds between attempts of a stage of the start: first and longest
_NOTHING = dp.Desired(dp.Ownership({}))


class Stage(NamedTuple):
    """A step of the start: tried until it succeeds. `doing` is what the daemon is said to be doing meanwhile."""

    doing: str
    failing: str
    action: Callable[[], None]


class Daemon:
    """One run of the daemon."""

    def __init__(self, options: Options, manager: SubnetManager, environ: Mapping[str, str]) -> None:
        self.options = options
        self.manager = manager
        self._environ = environ
        self._wake = Wake()
        self._publisher = Publisher(options.subnet_file, options.cni_conf, environ)
        self._lost = ""
        self._doing = ""
        self._started = False
        self._adrift = Repeated()
        self._overrides = Overrides()
        self._made_for: Optional[Tuple[NetworkConfig, Underlay]] = None
        self.started = time.monotonic()
        self.socket: Optional[StatusSocket] = None
        # Set by the stages of the start, in this order.
        self.config: NetworkConfig
        self.kernel: Kernel
        self.underlay: Underlay
        self.backend: Backend
        self.holding: Holding
        self.overlay: Optional[Overlay] = None
        self.guard: Optional[RulesGuard] = None
        self.picture: Optional[Picture] = None
        self.desired: Optional[dp.Desired] = None

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, then return 0. Device, entries, rules, subnet.env and lease stay.

        Raises FlanneldError when the start is impossible or the lease was lost.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self.manager.changed = self._wake.up
        self.manager.lost = self.fail
        if self._start():
            self._loop()
        return self._exit()

    def _stages(self) -> Tuple[Stage, ...]:
        """The start, in order. What the kernel and the store do wrong meanwhile is waited out; a wrong flag is not."""
        return (
            Stage(
                "waiting for the network configuration",
                "no network configuration yet, trying again: ",
                self._configure,
            ),
            Stage("choosing the interface", "no interface to use, trying again: ", self._choose_interface),
            Stage("leasing a subnet", "no lease yet, trying again: ", self._lease),
            Stage("programming the kernel", "the backend does not start, trying again: ", self._begin),
        )

    def trouble(self) -> str:
        """Return what keeps the daemon from being ready, empty when nothing does."""
        if self.overlay is None or self.guard is None:
            return self._doing
        return self._unprogrammed() or self._publisher.trouble

    def _unprogrammed(self) -> str:
        assert self.overlay is not None and self.guard is not None  # noqa: S101, PT018 - stages have set them
        return self.overlay.trouble or self.backend.trouble() or self.guard.trouble

    @property
    def own(self) -> Lease:
        """The own lease as it was acquired, with what is announced now."""
        return self.holding.lease

    def _start(self) -> bool:
        """Go through the stages; False when stopped meanwhile.

        After a failure all of them are gone through again: what is waited for may be another configuration, another
        address, or a lease that somebody gives up.
        """
        stages, repeated, pause = self._stages(), Repeated(), _PAUSE[0]
        place = 0
        while place < len(stages) and not self._wake.stopping:
            stage = stages[place]
            self._doing = self._doing or stage.doing
            self._publisher.say(self._doing)
            try:
                stage.action()
            except UsageError:
                raise
            except FlanneldError as error:
                self._doing = f"{stage.failing}{error}"
                self._publisher.say(self._doing)
                repeated.warn(self._doing)
                place = 0
                self._wake.pause(pause)
                pause = min(pause * 2, _PAUSE[1])
            else:
                place += 1
        return not self._wake.stopping

    def _configure(self) -> None:
        config = parse_config(self.manager.config_text())
        check_backend(config)
        if config != getattr(self, "config", None):
            logger.info("network configuration: %s, backend %s", config.name, config.backend_type)
        self.config = config

    def _choose_interface(self) -> None:
        if not hasattr(self, "kernel"):
            self.kernel = Kernel()
        self._overrides = self.manager.overrides()
        before, self.underlay = getattr(self, "underlay", None), self._underlay()
        if before is None or before._replace(reach=()) != self.underlay._replace(reach=()):
            shown = " and ".join(self.underlay.addresses.values())
            announced = " and ".join(self._public().values())
            logger.info("using interface %s with %s, announced as %s", self.underlay.name, shown, announced)
        if self._made_for == (self.config, self.underlay):
            return  # an attempt that got no further: what it has prepared is still good
        if hasattr(self, "backend"):
            self.backend.close()
        self.backend = make_backend(self.config, self.underlay)
        self._made_for = (self.config, self.underlay)

    def _underlay(self) -> Underlay:
        options = self.options.interface
        if self._overrides.own:
            options = options._replace(public={**options.public, **self._overrides.own})
        machine = interfaces.look(self.kernel, options, self.config.networks)
        return interfaces.choose(machine, options, self.config.networks, getattr(self, "underlay", None))

    def _public(self) -> Dict[int, str]:
        """The addresses announced to the other machines by IP version."""
        asked = {**self.options.interface.public, **self._overrides.own, **self._overrides.announced}
        return {version: asked.get(version, address) for version, address in self.underlay.addresses.items()}

    def _attributes(self) -> Attributes:
        public = self._public()
        return Attributes(
            public.get(4, ""), self.backend.announced, self.backend.data(4), public.get(6, ""), self.backend.data(6)
        )

    def _lease(self) -> None:
        macs = {link.name: link.found.mac for link in self.kernel.links()}
        self.backend.prepare(Existing(macs, self.manager.leases(), self._public(), self.manager.own_name))
        previous = previous_subnets(self.options.subnet_file)
        self.holding = self.manager.acquire(self.config, self._attributes(), previous)

    def _begin(self) -> None:
        own, options = self.own, self.options
        self.backend.start(own)
        blackholes = [str(one) for one in own.subnets] if options.blackhole_route else ()
        self.overlay = Overlay(self.kernel, blackholes, options.subnet_file)
        nftables = self.config.nftables
        # What an earlier run made for another network goes, once the rules for this one are there.
        rules = make_rules(nftables, previous_networks(options.subnet_file))
        self.guard = RulesGuard(rules, self._rules(), options.resync, self._wake.up, bridged=not nftables)
        self.manager.start(self.holding)
        self.guard.start()

    def _rules(self) -> RuleSpec:
        networks = self.config.networks
        return RuleSpec(
            {subnet.version: (networks[subnet.version], subnet) for subnet in self.own.subnets},
            masquerade=self.options.ip_masq,
            forward=self.options.forward_rules,
            random_fully=self.options.random_fully,
        )

    def _loop(self) -> None:
        assert self.overlay is not None  # noqa: S101 - a stage has set it
        selector = selectors.DefaultSelector()
        selector.register(self._wake.reader, selectors.EVENT_READ)
        selector.register(self.kernel.events, selectors.EVENT_READ)
        watchdog = watchdog_interval(self._environ)
        overlay, underlay = Schedule(LOOK), Schedule(LOOK)
        underlay.done(time.monotonic(), time.monotonic(), failing=False)
        while not self._wake.stopping:
            timeout = min(overlay.at, underlay.at, self._publisher.at) - time.monotonic()
            ready = {key.fd for key, _ in selector.select(max(0.0, min(timeout, watchdog or LOOK)))}
            now = time.monotonic()
            if watchdog:
                notify(self._environ, "WATCHDOG=1")
            if self._wake.reader in ready:
                self._wake.drain()
            if self.kernel.events.fileno() in ready:
                reports = self._reports()
                if reports.overlay:
                    overlay.report(now)
                if reports.underlay:
                    underlay.report(now)
            if underlay.at <= now:
                changed = self._follow_underlay()
                underlay.done(now, time.monotonic(), failing=changed is None)
                if changed:
                    overlay.demand(now)
            if self.manager.picture is not self.picture and self._follow_picture():
                overlay.demand(now)
            look = overlay.at <= now and self.desired is not None
            if look and self.desired is not None:
                begun = time.monotonic()
                self.overlay.converge(self.desired)
                overlay.done(begun, time.monotonic(), failing=bool(self.overlay.trouble))
                if self.socket is not None:
                    self.socket.ensure()
            self._publish(look=look)

    def _reports(self) -> Reports:
        try:
            return self.kernel.drain(self.desired or _NOTHING, self.underlay.name, self.underlay.ifindex)
        except FlanneldError as error:
            self._adrift.warn(f"the kernel's reports cannot be read: {error}")
            return Reports(overlay=True, underlay=True)

    def _follow_picture(self) -> bool:
        """Take over a new picture of the leases; True when the kernel has to be looked at."""
        assert self.overlay is not None  # noqa: S101 - a stage has set it
        first, before, picture = self.picture is None, self.picture, self.manager.picture
        if picture is None:
            return False
        self.picture = picture
        changed = self._follow_overrides()
        if picture.config and (before is None or picture.config != before.config):
            changed = self._reconfigure(picture.config) or changed
        seen = picture.leases.get(self.manager.own_name or format_key(self.own.subnets))
        if seen is None or (seen.subnets, seen.attributes) != (self.own.subnets, self.own.attributes):
            self.manager.check()
        FIGURES.set("flannel_leases", len(picture.leases))
        self.desired = self.backend.desired(self.own, picture.leases.values())
        if first:
            self._name_overlaps(self.overlay, self.desired)
        elif not changed:
            self.overlay.follow(self.desired)
        self.backend.update(picture.leases.values())
        return first or changed or bool(self.overlay.trouble)

    def _name_overlaps(self, overlay: Overlay, desired: dp.Desired) -> None:
        """Warn of what the machine has of its own within the pod networks."""
        made = [*overlay.made, *((one.destination, one.gateway) for one in desired.routes.values())]
        ours = [device.name for device in desired.devices]
        try:
            machine = interfaces.look(self.kernel, self.options.interface, self.config.networks)
        except FlanneldError as error:
            logger.warning("%s", error)
            return
        for overlap in interfaces.overlapping(machine, self.config.networks, self.own.subnets, ours, made):
            logger.warning("%s", overlap)

    def _follow_overrides(self) -> bool:
        """Take over addresses that the store prescribes now; True when something has changed."""
        try:
            overrides = self.manager.overrides()
        except FlanneldError as error:
            self._adrift.warn(f"the addresses prescribed for this machine stay as they were: {error}")
            return False
        if overrides == self._overrides:
            return False
        self._overrides = overrides
        return bool(self._follow_underlay())

    def _reconfigure(self, text: str) -> bool:
        """Take over a changed network configuration; True when it was."""
        try:
            config = parse_config(text)
        except ConfigError as error:
            logger.warning("the network configuration was changed to something that cannot be used: %s", error)
            return False
        if config == self.config:
            return False
        reasons = refusals(self.config, config)
        if reasons:
            logger.warning(
                "the network configuration was changed, and cannot be taken over while flanneld runs: %s"
                " (change it back, or restart flanneld on all machines)",
                "; ".join(reasons),
            )
            return False
        logger.info("the network configuration was changed to %s and is taken over", config.name)
        remarked = remark(config, self.own)
        if remarked:
            logger.warning("%s", remarked)
        self.config = config
        self.backend.follow(config, self.underlay)
        if self.guard is not None:
            self.guard.follow(self._rules())
        return True

    def _follow_underlay(self) -> Optional[bool]:
        """Take over a changed address, MTU or route of the machine.

        True when the kernel has to be looked at, None when there is nothing usable at the moment.
        """
        try:
            underlay = self._underlay()
            if underlay != self.underlay:
                self.backend.follow(self.config, underlay)
        except FlanneldError as error:
            # In the middle of a change there may be no address for a while: what was there before is kept.
            self._adrift.warn(f"the interface towards the other machines cannot be used as it is: {error}")
            return None
        self._adrift.clear("the interface towards the other machines can be used again")
        before, self.underlay = self.underlay, underlay
        if underlay._replace(reach=()) != before._replace(reach=()):
            shown = " and ".join(underlay.addresses.values())
            logger.warning("the machine's interface is %s with %s, MTU %d now", underlay.name, shown, underlay.mtu)
        attributes = self._attributes()
        if attributes != self.own.attributes:
            self.holding = self.holding._replace(lease=self.own._replace(attributes=attributes))
            self.manager.announce(attributes)
        elif underlay == before:
            return False
        if self.picture is not None:
            self.desired = self.backend.desired(self.own, self.picture.leases.values())
        return True

    def _publish(self, *, look: bool) -> None:
        """Write the files once everything is programmed, and again when they change; say that we are ready."""
        if self.desired is None:
            return
        content = SubnetFile(
            dict(sorted(self.config.networks.items())),
            {subnet.version: subnet for subnet in self.own.subnets},
            self.backend.mtu,
            self.options.ip_masq,
        )
        if not self._unprogrammed() and self._publisher.write(content, look=look) and not self._started:
            self._started = True
            logger.info("flannel is ready")
            self._publisher.say(f"subnet {self.own.name}", "READY=1")
            self.manager.ready()
            gc.collect()
            gc.freeze()  # what is there now lives as long as the process: never walk over it again
        self._publisher.show(self.trouble(), self.own.name)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._wake.stopping:
            os._exit(128 + number)  # asked twice: do not wait for anything
        self._wake.stop()

    def fail(self, reason: str) -> None:
        """End, with this reason; for every thread."""
        self._lost = self._lost or reason
        self._wake.stop()

    def _exit(self) -> int:
        notify(self._environ, "STOPPING=1")
        if hasattr(self, "backend"):
            self.backend.close()
        if self._lost:
            raise LeaseError(self._lost)
        logger.info("stopped; what is in the kernel, subnet.env and the lease stay")
        return 0


def make_manager(options: Options, environ: Mapping[str, str]) -> SubnetManager:
    """Return the subnet manager that the flags ask for. Raises UsageError."""
    if options.kube is not None:
        from flanneld.subnet.kube import KubeSubnetManager  # noqa: PLC0415 - nobody uses both

        return KubeSubnetManager(options.kube, environ)
    from flanneld.subnet.etcd import EtcdSubnetManager  # noqa: PLC0415 - as above

    return EtcdSubnetManager(options.etcd, options.prefix, options.renew_margin, options.etcd_api)


def _serve(daemon: Daemon) -> None:
    """Open the health server, and the socket that `flanneld status` asks."""
    options = daemon.options
    routes = probes(daemon.trouble, lambda: state.figures(daemon))
    if options.healthz is not None:
        serve(options.healthz, routes)

    def status() -> Answer:
        return Answer(200, "application/json", json.dumps(state.report(daemon)))

    daemon.socket = StatusSocket(state.socket_path(options.subnet_file), {**routes, "/status": status})
    daemon.socket.open()


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Run the daemon; returns the exit status. Every expected failure ends in one line on the log."""
    try:
        daemon = Daemon(options, make_manager(options, environ), environ)
        guard_threads(daemon.fail)
        _serve(daemon)
        return daemon.run()
    except FlanneldError as error:
        logger.critical("%s", error)
        notify(environ, f"STATUS={error}")
        return 1
