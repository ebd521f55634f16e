"""Reads an Ansible inventory with Ansible's own code: the only module of the lab that imports it."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.vars.manager import VariableManager

from kubewright.errors import UserError
from kubewright.lab.model import LabSpec, lab_spec

# What a file with hosts is called. Ansible itself would also read keys and secrets that lie in the directory.
_HOSTS_SUFFIXES = (".yml", ".yaml", ".ini", ".json")


def read_lab(source: Path) -> LabSpec:
    """Compute the lab of the inventory directory `source` (or of a hosts file in it)."""
    loader = DataLoader()
    try:
        manager = _manager(source, loader)
        variables = VariableManager(loader=loader, inventory=manager)
        addresses: dict[str, object] = {}
        network: object = None
        for host in manager.get_hosts("all"):
            values = variables.get_vars(host=host, include_hostvars=False)
            template = Templar(loader=loader, variables=values).template
            if template(values.get("ansible_connection", "ssh")) == "local":
                continue
            addresses[host.name] = template(values.get("ansible_host", ""))
            network = network or template(values.get("lab_network"))
    except AnsibleError as error:
        raise _unreadable(source, error) from None
    return lab_spec(source if source.is_dir() else source.parent, addresses, network)


def hosts_of(source: Path, group: str) -> list[str]:
    """Return the hosts of a group of the inventory `source`, in its order."""
    try:
        return [host.name for host in _manager(source, DataLoader()).get_hosts(group)]
    except AnsibleError as error:
        raise _unreadable(source, error) from None


def _manager(source: Path, loader: DataLoader) -> InventoryManager:
    if not source.exists():
        raise UserError(f"there is no inventory {source}", "name one with -i, for example -i inventories/lab")
    directory = source if source.is_dir() else source.parent
    files = sorted(path for path in directory.iterdir() if path.suffix in _HOSTS_SUFFIXES or path.name == "hosts")
    if source.is_dir() and not files:
        raise UserError(f"the inventory {source} has no hosts file", f"write the machines into {source}/hosts.yml")
    sources = [str(path) for path in files] if source.is_dir() else [str(source)]
    return InventoryManager(loader=loader, sources=sources)


def _unreadable(source: Path, error: AnsibleError) -> UserError:
    return UserError(f"Ansible cannot read the inventory {source}: {error}", "mend the inventory")
