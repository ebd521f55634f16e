"""A node of Kubernetes as flannel sees it: its pod CIDRs are a lease's subnets, annotations are what is announced.

Annotations are those of the Go daemon, byte for byte. Pure: nodes are decoded JSON as the API server sends them.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from typing import Any, Collection, Dict, List, Mapping, NamedTuple, Optional, Tuple

from flanneld.errors import ConfigError, LeaseError, UsageError
from flanneld.subnet.config import Network, NetworkConfig, flat_json
from flanneld.subnet.lease import Attributes, Lease, canonical
from flanneld.subnet.manager import Overrides

_PREFIX = re.compile(
    r"((?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)(?:/([a-z0-9][a-z0-9_-]*)?)?"
)
_LONGEST_NAME = 63 - len("public-ipv6-overwrite-")  # Kubernetes allows 63 characters after the slash, 253 before it

CONDITION = {
    "type": "NetworkUnavailable",
    "status": "False",
    "reason": "FlannelIsUp",
    "message": "Flannel is running on this node",
}
"""The node's condition while flannel works, without its times."""

_PUBLIC = {4: "public-ip", 6: "public-ipv6"}
_DATA = {4: "backend-data", 6: "backend-v6-data"}


class View(NamedTuple):
    """What flannel has to know of the own node; `uid` differs when a node of the same name was made anew."""

    uid: str
    subnets: Tuple[Network, ...]
    annotations: Mapping[str, str]
    network_available: bool


def annotation_prefix(text: str) -> str:
    """Return what the names of annotations begin with; raises UsageError when Kubernetes would not take them.

    It is a DNS name with a dot, and maybe "/" and a word. As in the Go daemon a word is followed by "-":
    flannel.alpha.coreos.com/ and example.org/pods-.
    """
    match = _PREFIX.fullmatch(text)
    if match is None or len(match[1]) > 253 or len(match[2] or "") > _LONGEST_NAME:
        raise UsageError(
            f"-kube-annotation-prefix is {text!r}",
            "it must be a DNS name with a dot, which may be followed by one slash and a word, all in lower case,"
            " such as flannel.alpha.coreos.com or example.org/pods",
        )
    word = match[2] or ""
    return f"{match[1]}/{word}" if not word or word.endswith("-") else f"{match[1]}/{word}-"


def name_of(node: Mapping[str, Any]) -> str:
    """Return the node's name, empty when it has none."""
    return str(_object(node.get("metadata")).get("name") or "")


def version_of(node: Mapping[str, Any]) -> str:
    """Return the version at which the node was sent."""
    return str(_object(node.get("metadata")).get("resourceVersion") or "")


def annotations_of(node: Mapping[str, Any]) -> Dict[str, str]:
    """Return the node's annotations; a node without any has no map of them at all."""
    found = _object(_object(node.get("metadata")).get("annotations"))
    return {str(key): str(value) for key, value in found.items()}


def pod_cidrs(node: Mapping[str, Any]) -> Tuple[Network, ...]:
    """Return the node's pod CIDRs, at most one per IP version; raises LeaseError when they are something else."""
    spec = _object(node.get("spec"))
    texts = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    found: List[Network] = []
    try:
        found = [ipaddress.ip_network(str(text), strict=False) for text in texts]
    except (ValueError, TypeError):
        raise LeaseError(f"node {json.dumps(name_of(node))} has the pod CIDRs {texts!r:.200}") from None
    if len({subnet.version for subnet in found}) != len(found):
        shown = ", ".join(map(str, found))
        raise LeaseError(
            f"node {json.dumps(name_of(node))} has the pod CIDRs {shown}", "it may have one of IPv4 and one of IPv6"
        )
    return tuple(sorted(found, key=lambda subnet: subnet.version))


def own_subnets(node: Mapping[str, Any], config: NetworkConfig) -> Tuple[Network, ...]:
    """Return the subnets that the node lends to flannel: one for each IP version of the configuration.

    Raises LeaseError when one is not assigned (yet), ConfigError when one lies outside of the network.
    """
    name = json.dumps(name_of(node))
    by_version: Dict[int, Network] = {subnet.version: subnet for subnet in pod_cidrs(node)}
    for version, network in config.networks.items():
        subnet = by_version.get(version)
        if subnet is None:
            family = "" if not by_version else f" for IPv{version}"
            raise LeaseError(
                f"node {name} pod cidr not assigned{family}",
                f"kube-controller-manager assigns it with --allocate-node-cidrs=true and {network} in --cluster-cidr",
            )
        if not subnet.subnet_of(network):  # type: ignore[arg-type]  # both are of this version
            raise ConfigError(
                f'subnet "{network}" specified in the flannel net config doesn\'t contain "{subnet}" PodCIDR of the'
                f" {name} node",
                "--cluster-cidr of kube-controller-manager and Network must be the same",
            )
    return tuple(by_version[version] for version in config.networks)


def lease_of(node: Mapping[str, Any], prefix: str, versions: Collection[int]) -> Lease:
    """Return what a node announces, for those of the IP versions that it has a subnet and an address of.

    Raises LookupError when flannel does not run there (yet), ValueError when an annotation is malformed.
    """
    annotations = annotations_of(node)
    if annotations.get(f"{prefix}kube-subnet-manager") != "true":
        raise LookupError
    try:
        subnets = [subnet for subnet in pod_cidrs(node) if subnet.version in versions]
    except LeaseError as error:
        raise ValueError(str(error)) from None
    if not subnets:
        raise LookupError
    public: Dict[int, str] = {}
    data: Dict[int, Any] = {}
    for version in [subnet.version for subnet in subnets]:
        address = annotations.get(prefix + _PUBLIC[version])
        if not address:
            continue
        try:
            public[version] = canonical(address, version)
        except ValueError:
            raise ValueError(f"its annotation {prefix}{_PUBLIC[version]} is {address!r:.100}") from None
        data[version] = _decoded(annotations, prefix + _DATA[version])
    if not public:
        raise ValueError("it announces no address")
    return Lease(
        tuple(subnet for subnet in subnets if subnet.version in public),
        Attributes(
            public.get(4, ""),
            annotations.get(f"{prefix}backend-type", ""),
            data.get(4),
            public.get(6, ""),
            data.get(6),
        ),
        permanent=True,
    )


def announced(attributes: Attributes, prefix: str) -> Dict[str, Optional[str]]:
    """Return the annotations that say this, as the Go daemon writes them: JSON without blanks, "null" for none.

    None is for those that must not be there: of an IP version that was announced in former times.
    """
    found: Dict[str, Optional[str]] = {
        f"{prefix}kube-subnet-manager": "true",
        f"{prefix}backend-type": attributes.backend_type,
    }
    for version in (4, 6):
        public = attributes.public(version)
        found[prefix + _PUBLIC[version]] = public or None
        found[prefix + _DATA[version]] = _encoded(attributes.data(version)) if public else None
    return found


def prescribed(annotations: Mapping[str, str], prefix: str) -> Overrides:
    """Return the addresses that an operator has annotated; raises ConfigError when one is none."""
    found: Dict[str, Dict[int, str]] = {"own": {}, "announced": {}}
    for version, public in _PUBLIC.items():
        for kind, key in (("own", f"{prefix}node-{public}"), ("announced", f"{prefix}{public}-overwrite")):
            value = annotations.get(key, "").strip()
            if not value:
                continue
            try:
                found[kind][version] = canonical(value, version)
            except ValueError:
                raise ConfigError(
                    f"the node's annotation {key} is {value!r}", f"it must be an IPv{version} address, or be removed"
                ) from None
    return Overrides(found["own"], found["announced"])


def view(node: Mapping[str, Any]) -> View:
    """Return what matters of the own node; raises LeaseError for pod CIDRs that cannot be used."""
    conditions = _object(node.get("status")).get("conditions")
    return View(
        str(_object(node.get("metadata")).get("uid") or ""),
        pod_cidrs(node),
        annotations_of(node),
        any(
            isinstance(one, dict) and (one.get("type"), one.get("status")) == (CONDITION["type"], CONDITION["status"])
            for one in (conditions if isinstance(conditions, list) else ())
        ),
    )


def condition(now: float) -> Dict[str, Any]:
    """Return the part of a node that says that its network is there; `now` in seconds since 1970."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return {"status": {"conditions": [{**CONDITION, "lastHeartbeatTime": stamp, "lastTransitionTime": stamp}]}}


def _encoded(data: Any) -> str:
    # Go escapes these three in JSON, and keeps other characters as they are.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _decoded(annotations: Mapping[str, str], key: str) -> Any:
    text = annotations.get(key)
    if not text:
        return None
    try:
        return flat_json(text)
    except (ValueError, RecursionError):
        raise ValueError(f"its annotation {key} is not JSON: {text!r:.100}") from None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
