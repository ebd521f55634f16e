"""The daemon: acquires a lease, then keeps the overlay as the leases say until it is told to stop.

Threads: the main one owns the kernel's network and the backend; the subnet manager's follow the leases and keep the
own one; one more checks the traffic rules. They meet in immutable pictures and a wake-up pipe only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import threading
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
from flanneld.net.kernel import Kernel
from flanneld.notify import notify, watchdog_interval
from flanneld.options import Options
from flanneld.outputs import (
    SubnetFile,
    cni_conflist,
    previous_networks,
    previous_subnets,
    subnet_env,
    write_atomically,
)
from flanneld.overlay import Overlay
from flanneld.rules.engine import make_rules
from flanneld.rules.spec import RuleSpec
from flanneld.schedule import Schedule
from flanneld.subnet.change import refusals, remark
from flanneld.subnet.config import NetworkConfig, parse_config
from flanneld.subnet.lease import Attributes, Holding, Lease
from flanneld.subnet.manager import Overrides, Picture, SubnetManager, fetch_config

LOOK = 60.0
"""Seconds between looks at the kernel when it reports nothing: its reports are not lost, but this is the network."""

_PAUSE = (0.2, 5.0)  # seconds between attempts of a stage of the start: first and longest
_REWRITE = 1.0  # seconds between attempts to write the files
_NOTHING = dp.Desired(dp.Ownership({}))


class Wake:
    """A pipe that lets other threads and signal handlers interrupt a select."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def up(self) -> None:
        """Interrupt the select, now or the next one."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._writer, b".")

    def drain(self) -> None:
        """Forget the wake-ups seen."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)


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
        self._stopped = threading.Event()
        self._lost = ""
        self._doing = ""
        self._published: Optional[SubnetFile] = None
        self._unwritten, self._adrift = Repeated(), Repeated()
        self._overrides = Overrides()
        self.started = time.monotonic()
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
        self.manager.lost = self._on_lost
        if self._start():
            self._loop()
        return self._exit()

    def _stages(self) -> Tuple[Stage, ...]:
        """The start, in order. What the kernel and the store do wrong meanwhile is waited out; a wrong flag is not."""
        return (
            Stage(
                "waiting for the network configuration",
                "the network configuration cannot be used",
                self._configure,
            ),
            Stage("choosing the interface", "no interface to use", self._choose_interface),
            Stage("leasing a subnet", "no lease yet", self._lease),
            Stage("programming the kernel", "the backend does not start", self._begin),
        )

    def trouble(self) -> str:
        """Return what keeps the daemon from being ready, empty when nothing does."""
        if self.overlay is None or self.guard is None:
            return self._doing
        found = self.overlay.trouble or self.backend.trouble() or self.guard.trouble
        return found or ("" if self._published else f"{self.options.subnet_file} is not written")

    @property
    def own(self) -> Lease:
        """The own lease as it was acquired, with what is announced now."""
        return self.holding.lease

    def _start(self) -> bool:
        """Go through the stages; False when stopped meanwhile."""
        stages, repeated, pause = self._stages(), Repeated(), _PAUSE[0]
        place = 0
        while place < len(stages) and not self._stopped.is_set():
            stage = stages[place]
            self._doing = stage.doing
            notify(self._environ, f"STATUS={stage.doing}")
            try:
                stage.action()
            except UsageError:
                raise
            except FlanneldError as error:
                self._doing = f"{stage.failing}: {error}"
                notify(self._environ, f"STATUS={self._doing}")
                repeated.warn(f"{stage.failing}, trying again: {error}")
                if isinstance(error, ConfigError):
                    place = 0  # only another configuration can help
                self._stopped.wait(pause)
                pause = min(pause * 2, _PAUSE[1])
            else:
                place += 1
        return not self._stopped.is_set()

    def _configure(self) -> None:
        config = fetch_config(self.manager, self._stopped)
        if config is None:
            return
        check_backend(config)
        self.config = config
        shown = " and ".join(map(str, config.networks.values()))
        logger.info("network configuration: %s, backend %s", shown, config.backend_type)

    def _choose_interface(self) -> None:
        if not hasattr(self, "kernel"):
            self.kernel = Kernel()
        self.underlay = self._underlay()
        shown = " and ".join(self.underlay.addresses.values())
        announced = " and ".join(self._public().values())
        logger.info("using interface %s with %s, announced as %s", self.underlay.name, shown, announced)
        self._overrides = self.manager.overrides()
        self.backend = make_backend(self.config, self.underlay)

    def _underlay(self) -> Underlay:
        options = self.options.interface
        own = self.manager.overrides().own
        if own:
            options = options._replace(public={**options.public, **own})
        machine = interfaces.look(self.kernel, options, self.config.networks)
        return interfaces.choose(machine, options, self.config.networks)

    def _public(self) -> Dict[int, str]:
        """The addresses announced to the other machines by IP version."""
        overrides = self.manager.overrides()
        asked = {**self.options.interface.public, **overrides.own, **overrides.announced}
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
        machine = interfaces.look(self.kernel, options.interface, self.config.networks)
        ours = [device.name for device in self.backend.desired(own, ()).devices]
        for route in interfaces.overlapping(machine, self.config.networks, own.subnets, ours):
            logger.warning("this machine has a route of its own within the pod network, which may hide pods: %s", route)
        self.overlay = Overlay(self.kernel, [str(one) for one in own.subnets] if options.blackhole_route else ())
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
        overlay, underlay = Schedule(LOOK), Schedule()
        while not self._stopped.is_set():
            timeout = min(overlay.at, underlay.at) - time.monotonic()
            ready = {key.fd for key, _ in selector.select(max(0.0, min(timeout, watchdog or LOOK)))}
            now = time.monotonic()
            if watchdog:
                notify(self._environ, "WATCHDOG=1")
            if self._wake.reader in ready:
                self._wake.drain()
            if self.kernel.events.fileno() in ready:
                reports = self.kernel.drain(self.desired or _NOTHING, self.underlay.name)
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
            if overlay.at <= now and self.desired is not None:
                begun = time.monotonic()
                self.overlay.converge(self.desired)
                overlay.done(begun, time.monotonic(), failing=bool(self.overlay.trouble))
            self._publish()

    def _follow_picture(self) -> bool:
        """Take over a new picture of the leases; True when the kernel has to be looked at."""
        assert self.overlay is not None  # noqa: S101 - a stage has set it
        overrides = self.manager.overrides()
        if overrides != self._overrides:
            self._overrides = overrides
            self._follow_underlay()
        first, before, picture = self.picture is None, self.picture, self.manager.picture
        if picture is None:
            return False
        self.picture = picture
        changed = False
        if picture.config and (before is None or picture.config != before.config):
            changed = self._reconfigure(picture.config)
        seen = next((lease for lease in picture.leases.values() if lease.subnets == self.own.subnets), None)
        if seen is None or seen.attributes != self.own.attributes:
            self.manager.check()
        FIGURES.set("flannel_leases", len(picture.leases))
        self.desired = self.backend.desired(self.own, picture.leases.values())
        if not first and not changed:
            self.overlay.follow(self.desired)
        self.backend.update(picture.leases.values())
        return first or changed or bool(self.overlay.trouble)

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
        shown = " and ".join(map(str, config.networks.values()))
        logger.info("the network configuration was changed to %s and is taken over", shown)
        if remark(config, self.own):
            logger.warning("%s", remark(config, self.own))
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
            if underlay == self.underlay and self._attributes() == self.own.attributes:
                self._adrift.clear("the interface towards the other machines can be used again")
                return False
            if underlay._replace(reach=()) != self.underlay._replace(reach=()):
                shown = " and ".join(underlay.addresses.values())
                logger.warning("the machine's interface is %s with %s, MTU %d now", underlay.name, shown, underlay.mtu)
            self.backend.follow(self.config, underlay)
        except FlanneldError as error:
            # In the middle of a change there may be no address for a while: what was there before is kept.
            self._adrift.warn(f"the interface towards the other machines cannot be used as it is: {error}")
            return None
        self._adrift.clear("the interface towards the other machines can be used again")
        self.underlay = underlay
        attributes = self._attributes()
        if attributes != self.own.attributes:
            self.holding = self.holding._replace(lease=self.own._replace(attributes=attributes))
            self.manager.announce(attributes)
        if self.picture is not None:
            self.desired = self.backend.desired(self.own, self.picture.leases.values())
        return True

    def _publish(self) -> None:
        """Write the files once everything is programmed, and again when they change; say that we are ready."""
        if self.overlay is None or self.guard is None or self.desired is None:
            return
        trouble = self.overlay.trouble or self.backend.trouble() or self.guard.trouble
        FIGURES.set("flannel_ready", 0.0 if trouble else 1.0)
        networks = self.config.networks
        content = SubnetFile(
            {version: networks[version] for version in sorted(networks)},
            {subnet.version: subnet for subnet in self.own.subnets},
            self.backend.mtu,
            self.options.ip_masq,
        )
        if trouble or content == self._published:
            return
        try:
            if self.options.cni_conf is not None:
                write_atomically(self.options.cni_conf, cni_conflist(content))
            write_atomically(self.options.subnet_file, subnet_env(content))
        except FlanneldError as error:
            self._unwritten.warn(str(error))
            self._stopped.wait(_REWRITE)
            self._wake.up()
            return
        self._unwritten.clear()
        first = self._published is None
        self._published = content
        logger.info("wrote %s", self.options.subnet_file)
        notify(self._environ, *(["READY=1"] if first else []), f"STATUS=subnet {self.own.name}")
        if first:
            logger.info("flannel is ready")
            self.manager.ready()
            gc.collect()
            gc.freeze()  # what is there now lives as long as the process: never walk over it again

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._stopped.is_set():
            os._exit(128 + number)  # asked twice: do not wait for anything
        self._stopped.set()
        self._wake.up()

    def _on_lost(self, reason: str) -> None:
        self._lost = reason
        self._stopped.set()
        self._wake.up()

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
    routes = probes(daemon.trouble, FIGURES.text)
    if options.healthz is not None:
        serve(options.healthz, routes)

    def status() -> Answer:
        return Answer(200, "application/json", json.dumps(state.report(daemon)))

    try:
        serve(state.socket_path(options.subnet_file), {**routes, "/status": status})
    except UsageError:
        raise
    except FlanneldError as error:
        logger.warning("`flanneld status` will not work: %s", error)


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Run the daemon; returns the exit status. Every expected failure ends in one line on the log."""
    try:
        daemon = Daemon(options, make_manager(options, environ), environ)
        _serve(daemon)
        return daemon.run()
    except FlanneldError as error:
        logger.critical("%s", error)
        notify(environ, f"STATUS={error}")
        return 1
