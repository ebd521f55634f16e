"""Where the API is reached: the mode, what it needs of the inventory, and who else answers.

Pure, like the rest of the cluster's computation in topology.py.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from kubewright.topology import Machine, Network

_ENDPOINT = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?:[0-9]{1,5}")


def mode_of(variables: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> str:
    """The mode that `api_endpoint_mode` means for these groups."""
    mode = str(variables.get("api_endpoint_mode") or "auto")
    if mode != "auto":
        return mode
    if groups.get("lb"):
        return "vip"
    if variables.get("api_endpoint"):
        return "external"
    return "local_proxy" if len(groups.get("kube_master", [])) > 1 else "single"


def _check_vip(vip: str, machines: Sequence[Machine], networks: Mapping[str, Network | None]) -> list[str]:
    try:
        address = ipaddress.IPv4Address(vip)
    except ValueError:
        return [f"api_vip: {vip!r} is not an IPv4 address; set a free one of the network of the machines in lb"]
    found = [
        f"api_vip {vip} is the address of {m.name}; choose one that no machine has"
        for m in machines
        if m.address == vip
    ]
    found += [
        f"api_vip {vip} lies in {label} {network}; choose a free address of the machines' own network"
        for label, network in networks.items()
        if network and address in network
    ]
    return found


def problems(
    mode: str,
    variables: Mapping[str, Any],
    machines: Sequence[Machine],
    networks: Mapping[str, Network | None],
) -> list[str]:
    """What is wrong with the variables of this mode.

    `variables`: cluster-wide; `networks`: name of the variable -> network that must not contain the address.
    """
    found: list[str] = []
    vip, endpoint = str(variables.get("api_vip") or ""), str(variables.get("api_endpoint") or "")
    masters, balancers = [m for m in machines if m.is_master], [m for m in machines if m.is_lb]
    if mode == "vip":
        if not balancers:
            found.append(
                "lb: the group is empty, api_endpoint_mode vip needs machines in it; or keep the address yourself and "
                "set api_endpoint: HOST:PORT"
            )
        if vip:
            found += _check_vip(vip, machines, networks)
        else:
            found.append("api_vip: not set; set a free address of the network of the machines in lb")
        router_id = variables.get("api_vip_router_id", 51)
        if not 1 <= int(router_id) <= 255:
            found.append(f"api_vip_router_id: {router_id} is not between 1 and 255")
        both = [m.name for m in balancers if m.is_master]
        if both:
            found.append(
                f"lb: {', '.join(both)} are masters, whose API server has the port already; use other machines, or no "
                "group lb, and nodes get proxies of their own (api_endpoint_mode: local_proxy)"
            )
    else:
        if balancers:
            found.append(
                f"lb: {', '.join(m.name for m in balancers)} would have nothing to do with api_endpoint_mode {mode}; "
                "empty the group, or set the mode to auto"
            )
        if vip:
            found.append(
                f"api_vip: {vip} is nobody's with api_endpoint_mode {mode}; put machines into the group lb, or set "
                f"api_endpoint: {vip}:{variables.get('api_port')} when it is an address that you keep yourself"
            )
    if mode == "external" and not _ENDPOINT.fullmatch(endpoint):
        found.append(f"api_endpoint: {endpoint!r} is not HOST:PORT, such as api.example.org:6443")
    if mode != "external" and endpoint:
        found.append(f"api_endpoint: {endpoint} is not used with api_endpoint_mode {mode}; unset one of them")
    if mode == "single" and len(masters) > 1:
        found.append(
            f"api_endpoint_mode: single, with {len(masters)} masters, leaves the cluster without an API when one fails"
            "; use local_proxy, vip or external (auto chooses)"
        )
    return found


def other_servers(cluster: Mapping[str, Any], name: str, ca: str) -> list[dict[str, str]]:
    """Checks of the API servers but that of the master `name`. `cluster`: the facts; `ca`: path on that master."""
    own = f"{cluster['machines'][name]['address']}:{cluster['api_port']}"
    servers = [server for server in cluster["api_servers"] if server != own]
    return [{"kind": "http", "url": f"https://{server}/readyz", "ca": ca, "expect": "ok"} for server in servers]


def outside_url(cluster: Mapping[str, Any], answering: Sequence[str], kubeconfig: str = "") -> str:
    """The API's URL for who is no machine of the cluster.

    `cluster`: the facts. `answering`: masters that answer. `kubeconfig`: the present one, whose choice stays when it is
    as good as any.
    """
    urls: list[str] = list(cluster["api_outside_urls"])
    addresses = [cluster["machines"][name]["address"] for name in answering]
    good = [url for url in urls if len(urls) == 1 or urlsplit(url).hostname in addresses] or urls
    return next((url for url in good if f"server: {url}\n" in kubeconfig), good[0])
