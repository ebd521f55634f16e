from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# For what makes archives and web sites.
sys.path.insert(1, str(Path(__file__).parent.parent / "unit"))

from flannel_lab import Lab, Machine, Network, Tools, lab, until
from kube_api import Api

from kubewright.pyz import build_flanneld

_PLAIN = str.maketrans(dict.fromkeys("[]/ ", "-"))
CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_flanneld(tmp_path_factory.mktemp("pyz") / "flanneld.pyz")


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    return Tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="module")
def flannel_lab(tmp_path_factory: pytest.TempPathFactory, tools: Tools, pyz: Path) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab"), tools, pyz) as made:
        made.configure(CONFIG)
        yield made


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    made = Api(tmp_path_factory.mktemp("api"))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def network(flannel_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Callable[[dict[str, Any]], Network]]:
    """Makes a network below a prefix of the test's own; its machines are gone after the test."""
    made: list[Network] = []

    def make(config: dict[str, Any]) -> Network:
        made.append(Network(flannel_lab, f"{request.node.name}-{len(made)}".translate(_PLAIN), config))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def trio(flannel_lab: Lab) -> list[Machine]:
    """Three machines with running daemons that know each other, each with the first address of its subnet."""
    machines = [flannel_lab.machine() for _ in range(3)]
    for machine in machines:
        machine.start()
        machine.bridge_up()
    for machine in machines:
        for peer in machines:
            if peer is not machine:
                until(
                    5,
                    lambda m=machine, p=peer: m.knows(p),
                    f"{machine.namespace} knows {peer.namespace}:\n{machine.log}",
                )
    return machines
