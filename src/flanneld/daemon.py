"""The daemon: acquires a subnet, then keeps the overlay as the leases say until it is told to stop.

Threads: the main one owns the kernel's network; `Watcher` and `Keeper` own their connections to etcd; one more checks
the iptables rules. They meet in immutable pictures and a wake-up pipe only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
from typing import Mapping, Optional, Tuple

from flanneld.backend_vxlan import VxlanBackend
from flanneld.config import Address, NetworkConfig
from flanneld.errors import EtcdError, FlanneldError, LeaseError, RulesError
from flanneld.etcd import EtcdClient, tls_context
from flanneld.log import Repeated, logger
from flanneld.manager import Holding, Keeper, SubnetManager, Watcher, fetch_config
from flanneld.net import Kernel, choose_interface
from flanneld.notify import notify
from flanneld.options import Options
from flanneld.outputs import SubnetFile, cni_conflist, previous_subnet, subnet_env, write_atomically
from flanneld.overlay import Overlay
from flanneld.rules import Iptables
from flanneld.subnet import Attributes

RECONCILE = 5.0
"""Seconds between looks at the kernel when it reports nothing."""

_RETRY = 1.0  # seconds between attempts while the kernel refuses something and reports change after change
_SETTLE = 0.05  # seconds that the kernel's reports of one change are gathered


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


class RulesThread(threading.Thread):
    """Checks the rules every `every` seconds; `trouble` is empty while they are as they should be."""

    def __init__(self, rules: Iptables, every: float, wake: Wake) -> None:
        super().__init__(name="rules", daemon=True)
        self._rules = rules
        self._every = every
        self._wake = wake
        self.trouble = "the iptables rules are not set yet"

    def run(self) -> None:
        """Check for ever."""
        repeated = Repeated()
        while True:
            before = self.trouble
            try:
                for wrong in self._rules.ensure():
                    logger.info("iptables: %s; set anew", wrong)
                self.trouble = ""
                repeated.clear("the iptables rules are in place again")
            except RulesError as error:
                self.trouble = str(error)
                repeated.warn(f"the iptables rules cannot be set, trying again: {error}")
            if self.trouble != before:
                self._wake.up()
            time.sleep(self._every)


class Daemon:
    """One run of the daemon."""

    def __init__(self, options: Options, environ: Mapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self._wake = Wake()
        self._stopped = threading.Event()
        self._lost = ""
        self._overlay: Optional[Overlay] = None
        self._rules: Optional[RulesThread] = None
        self._published = False

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, then return 0. Device, entries, rules, subnet.env and lease stay.

        Raises FlanneldError when the start is impossible or the lease was lost.
        """
        options = self._options
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if options.healthz is not None:
            from flanneld.health import serve  # noqa: PLC0415 - its import takes 20 ms and few want it

            serve(options.healthz, self.trouble)
        context = tls_context(options.etcd)
        if context is None:
            logger.warning("etcd is reached over plain HTTP: whoever can read or write there owns the network")
        manager = SubnetManager(EtcdClient(options.etcd, context), options.prefix)
        self._status("waiting for the network configuration in etcd")
        config = fetch_config(manager, self._stopped)
        if config is None:
            return self._exit()
        kernel, backend, public_ip = self._prepare(config)
        self._status("leasing a subnet")
        holding = self._acquire(manager, config, backend, kernel, public_ip)
        if holding is None:
            return self._exit()
        subnet = holding.lease.subnet
        self._overlay = Overlay(kernel, backend, subnet)
        rules = Iptables(
            config.network,
            subnet,
            masquerade=options.ip_masq,
            forward=options.forward_rules,
            random_fully=options.random_fully,
        )
        self._rules = RulesThread(rules, options.resync, self._wake)
        watcher = Watcher(EtcdClient(options.etcd, context), options.prefix, self._wake.up)
        keeper = Keeper(manager, holding, options.renew_margin, self._on_lost)
        for thread in (watcher, self._rules, keeper):
            thread.start()
        self._loop(kernel, watcher, keeper, holding, SubnetFile(config.network, subnet, backend.mtu, options.ip_masq))
        return self._exit()

    def trouble(self) -> str:
        """Return what keeps the daemon from being ready, empty when nothing does."""
        if self._overlay is None or self._rules is None:
            return "no subnet is leased yet"
        return self._overlay.trouble or self._rules.trouble or ("" if self._published else "subnet.env is not written")

    def _prepare(self, config: NetworkConfig) -> Tuple[Kernel, VxlanBackend, Address]:
        logger.info("network config: network %s, backend %s", config.network, config.backend_type)
        kernel = Kernel()
        underlay = choose_interface(kernel, self._options.interface)
        public_ip = self._options.interface.public_ip or underlay.address
        logger.info("using interface %s, address %s, announced as %s", underlay.name, underlay.address, public_ip)
        return kernel, VxlanBackend(config, underlay), public_ip

    def _acquire(
        self,
        manager: SubnetManager,
        config: NetworkConfig,
        backend: VxlanBackend,
        kernel: Kernel,
        public_ip: Address,
    ) -> Optional[Holding]:
        repeated, pause = Repeated(), 0.2
        existing = next((link.found.mac for link in kernel.links() if link.name == backend.device), None)
        previous = previous_subnet(self._options.subnet_file)
        while not self._stopped.is_set():
            try:
                backend.choose_mac(existing, manager.leases(), public_ip)
                attributes = Attributes(public_ip, backend.type, backend.data())
                return manager.acquire(config, attributes, previous)
            except (EtcdError, LeaseError) as error:
                repeated.warn(f"no lease yet, trying again: {error}")
            self._stopped.wait(pause)
            pause = min(pause * 2, 5.0)
        return None

    def _loop(self, kernel: Kernel, watcher: Watcher, keeper: Keeper, holding: Holding, content: SubnetFile) -> None:
        overlay = self._overlay
        assert overlay is not None  # noqa: S101 - run() has just set it
        selector = selectors.DefaultSelector()
        selector.register(self._wake.reader, selectors.EVENT_READ)
        selector.register(kernel.events, selectors.EVENT_READ)
        own = holding.lease
        due = False
        while not self._stopped.is_set():
            if due and watcher.seen.is_set():
                leases = watcher.leases
                seen = next((lease for lease in leases.values() if lease.subnet == own.subnet), None)
                if seen is None or seen.attributes != own.attributes:
                    keeper.poke()
                overlay.converge(leases.values())
            if not self._published:
                self._publish(content)
            ready = {key.fd for key, _ in selector.select(RECONCILE)}
            if self._published:
                time.sleep(_RETRY if overlay.trouble else _SETTLE)
            due = not ready
            if self._wake.reader in ready:
                self._wake.drain()
                due = True
            if kernel.events.fileno() in ready:
                due |= kernel.drain_events(overlay.ifindex)

    def _publish(self, content: SubnetFile) -> None:
        if self._overlay is None or self._rules is None or self._overlay.trouble or self._rules.trouble:
            return
        if self._options.cni_conf is not None:
            write_atomically(self._options.cni_conf, cni_conflist(content))
        write_atomically(self._options.subnet_file, subnet_env(content))
        self._published = True
        logger.info("wrote %s; flannel is ready", self._options.subnet_file)
        notify(self._environ, "READY=1", f"STATUS=subnet {content.subnet} of {content.network}")

    def _status(self, text: str) -> None:
        notify(self._environ, f"STATUS={text}")

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
        if self._lost:
            raise LeaseError(self._lost)
        logger.info("stopped; device, rules, subnet.env and lease stay")
        return 0


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Run the daemon; returns the exit status. Every expected failure ends in one line on the log."""
    try:
        return Daemon(options, environ).run()
    except FlanneldError as error:
        logger.critical("%s", error)
        notify(environ, f"STATUS={error}")
        return 1
