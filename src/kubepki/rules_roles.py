"""Rules that Kubernetes and etcd impose on what has a role: names, users, usages, and which CA may vouch for whom.

Source: "PKI certificates and requirements" and "Certificate Signing Requests" of the Kubernetes documentation, and
etcd's transport security guide.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping

from cryptography import x509
from cryptography.x509.oid import NameOID

from kubepki import usages
from kubepki.rulebook import Finding, Found
from kubepki.rules_x509 import extended, has_names, san, title, without_names
from kubepki.spec import Certificate, Spec, Surroundings

_CLIENT = (usages.CLIENT_AUTH,)
_SERVER = (usages.SERVER_AUTH,)
_USAGES: Mapping[str, tuple[str, ...]] = {
    "apiserver": _SERVER,
    "kubelet-server": _SERVER,
    "etcd-server": _SERVER + _CLIENT,
    "etcd-peer": _SERVER + _CLIENT,
}
_PROXY = "front-proxy-client"
_KUBERNETES = ("kubernetes", "kubelet-signer")
# Roles of certificates -> roles of CAs that may have issued them; the rest is Kubernetes' clients.
_ISSUERS: Mapping[str, tuple[str, ...]] = {
    "apiserver": ("kubernetes",),
    _PROXY: ("front-proxy",),
    "apiserver-etcd-client": ("etcd",),
    "etcd-server": ("etcd",),
    "etcd-peer": ("etcd",),
    "etcd-client": ("etcd",),
}
_USERS = {
    "controller-manager": "system:kube-controller-manager",
    "scheduler": "system:kube-scheduler",
    "kube-proxy": "system:kube-proxy",
}
# RFC 1123, in the lower case that the API server asks of nodes.
_NODE = re.compile(r"system:node:[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_DOUBLED = "system:system:"
_NODES = "system:nodes"
_MASTERS = "system:masters"


def common_name(certificate: x509.Certificate) -> str:
    """The last common name, which is the one that Go takes; empty without one."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[-1].value) if found else ""


def organisations(certificate: x509.Certificate) -> list[str]:
    """All of the subject: groups, to Kubernetes."""
    return [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]


def leaf(spec: Spec, wanted: Certificate, certificate: x509.Certificate) -> Iterator[Finding]:
    """Breaches of one certificate, by its role; without one, what holds for all."""
    yield from _groups(wanted, certificate)
    if not wanted.role:
        yield from without_names(wanted, certificate)
        return
    yield from _usages(wanted, certificate)
    yield from _authority(spec, wanted)
    check = _CHECKS.get(wanted.role, _client)
    yield from check(wanted, certificate, spec.cluster)


def _again(what: str) -> str:
    return f"{what}, then run kubepki apply"


def _groups(wanted: Certificate, certificate: x509.Certificate) -> Iterator[Finding]:
    for group in organisations(certificate):
        if group.startswith(_DOUBLED):
            yield Finding(
                "doubled-prefix",
                wanted.name,
                f"O is {group!r}: 'system:' stands there twice",
                _again(f"set o: [{group.removeprefix('system:')}], or none"),
            )
    if _MASTERS in organisations(certificate) and usages.CLIENT_AUTH in (extended(certificate) or _CLIENT):
        yield Finding(
            "system-masters",
            wanted.name,
            f"O is {_MASTERS}: who has the key rules the cluster until {certificate.not_valid_after_utc:%Y-%m-%d}",
            _again("use a group of your own that a ClusterRoleBinding gives cluster-admin"),
        )


def _usages(wanted: Certificate, certificate: x509.Certificate) -> Iterator[Finding]:
    purposes = extended(certificate)
    if purposes is None or usages.EXTENDED["any"] in purposes:
        return
    shown = ", ".join(map(usages.name_of, purposes)) or "none"
    missing = [usage for usage in _USAGES.get(wanted.role, _CLIENT) if usage not in purposes]
    if wanted.role == "etcd-server" and missing == [usages.CLIENT_AUTH]:
        yield Finding(
            "etcd-server-client-auth",
            wanted.name,
            f"its extended usages are {shown}, and etcd's gateway is a client of its own server with it",
            _again("set profile: peer"),
        )
    elif missing:
        lacking = " and ".join(map(usages.name_of, missing))
        profile = "peer" if len(_USAGES.get(wanted.role, _CLIENT)) > 1 else lacking.removesuffix(" auth")
        yield Finding(
            "usage-missing",
            wanted.name,
            f"its extended usages are {shown}; as {wanted.role} it needs {lacking}",
            _again(f"set profile: {profile}"),
        )


def _stranger(one: Certificate, role: str) -> bool:
    """Whether a certificate may not come from the CA of the front proxy, and nobody else says so."""
    if one.role:
        # With a CA of the role, each of these is a finding of its own.
        return one.role != _PROXY and not role
    return "client auth" in one.profile.usages or "server auth" not in one.profile.usages


def _authority(spec: Spec, wanted: Certificate) -> Iterator[Finding]:
    role = spec.authorities[wanted.ca].role
    allowed = _ISSUERS.get(wanted.role, _KUBERNETES)
    if wanted.role == _PROXY and role in ("", "front-proxy"):
        others = [one.name for one in spec.certificates if one.ca == wanted.ca and _stranger(one, role)]
        if others:
            yield Finding(
                "front-proxy-ca",
                wanted.name,
                f"is issued by {wanted.ca}, and so are {', '.join(others)}: who has one of these may say of any "
                "request whom it comes from",
                _again("give the front proxy a CA of its own, with role: front-proxy, and nothing else of it"),
            )
    if not role or role in allowed:
        return
    if role == "front-proxy":
        yield Finding(
            "front-proxy-ca",
            wanted.name,
            f"is issued by {wanted.ca}, whose clients may say of any request whom it comes from",
            _again(f"set ca: to that of the role {allowed[0]}"),
        )
    elif wanted.role == _PROXY:
        yield Finding(
            "front-proxy-ca",
            wanted.name,
            f"is issued by {wanted.ca}, a CA of ordinary clients: all these would be asked for as front proxies",
            _again("give the front proxy a CA of its own, with role: front-proxy, and nothing else of it"),
        )
    else:
        reason = "every client of that CA is a client of etcd, with all rights" if allowed == ("etcd",) else ""
        yield Finding(
            "role-ca",
            wanted.name,
            f"is issued by {wanted.ca}, of the role {role}" + (f": {reason}" if reason else ""),
            _again(f"set ca: to that of the role {allowed[0]}"),
        )


def _covers(names: list[str], name: str) -> bool:
    known = {one.lower() for one in names}
    return name.lower() in known or f"*.{name.lower().partition('.')[2]}" in known


def _apiserver(wanted: Certificate, certificate: x509.Certificate, cluster: Surroundings) -> Iterator[Finding]:
    names, addresses = san(certificate)
    domain = cluster.dns_domain
    needed = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}")
    missing = [name for name in needed if not _covers(names, name)]
    if missing:
        slip = f"kubernetes.svc.{domain}"
        # Copied from instruction to instruction: the namespace is forgotten.
        explained = f"; {slip} is no name of the API, 'default' is missing in it" if _covers(names, slip) else ""
        yield Finding(
            "apiserver-names",
            wanted.name,
            f"lacks {', '.join(missing)}{explained}",
            _again(f"add to its hosts: {', '.join(missing)}"),
        )
    if not cluster.service_networks:
        yield Finding(
            "service-networks-unknown",
            wanted.name,
            "the specification does not say which networks Services have, so their address of the API is not looked at",
            "set cluster: {service_cidrs: [10.96.0.0/12]} to the API server's --service-cluster-ip-range",
        )
    for network in cluster.service_networks:
        first = network.network_address + 1
        if first in network and first not in addresses:
            yield Finding(
                "apiserver-service-address",
                wanted.name,
                f"lacks {first}, the first address of {network}: pods would refuse the API server",
                _again(f"add {first} to its hosts"),
            )
    local = [] if _covers(names, "localhost") else ["localhost"]
    local += [] if ipaddress.ip_address("127.0.0.1") in addresses else ["127.0.0.1"]
    if local:
        yield Finding(
            "apiserver-localhost",
            wanted.name,
            f"lacks {', '.join(local)}",
            _again(f"add to its hosts: {', '.join(local)}"),
        )


def _client(wanted: Certificate, certificate: x509.Certificate, _cluster: Surroundings) -> Iterator[Finding]:
    found = common_name(certificate)
    expected = _USERS.get(wanted.role)
    if expected and found != expected:
        slip = ": 'system:' stands there twice" if found.startswith(_DOUBLED) else ""
        yield Finding(
            "user-name",
            wanted.name,
            f"CN is {found!r}{slip}; the {wanted.role} must be the user {expected}",
            _again(f"set cn: {expected}"),
        )
    elif not found:
        yield Finding("empty-common-name", wanted.name, "has no common name", _again("set cn: to the user's name"))
    elif wanted.role == "front-proxy-client" and found != wanted.role:
        yield Finding(
            "front-proxy-name",
            wanted.name,
            f"CN is {found!r}, and the API server must be told to allow it",
            _again(f"set cn: {wanted.role}, or --requestheader-allowed-names={found}"),
        )


def _node_user(certificate: x509.Certificate) -> str:
    """What is wrong with the subject of a node; empty when nothing is."""
    found = common_name(certificate)
    if not _NODE.fullmatch(found):
        if found != found.lower() and _NODE.fullmatch(found.lower()):
            return f"CN is {found!r}, and names of nodes are lower case: {found.lower()}"
        slip = ": 'system:' stands there twice" if found.startswith(_DOUBLED) else ""
        return f"CN is {found!r}{slip}; a node is the user system:node:NAME"
    groups = organisations(certificate)
    if _NODES not in groups:
        return f"O is {', '.join(groups) or 'missing'}; a node is of the group {_NODES}"
    return ""


def _kubelet_client(wanted: Certificate, certificate: x509.Certificate, _cluster: Surroundings) -> Iterator[Finding]:
    problem = _node_user(certificate)
    if problem:
        yield Finding(
            "kubelet-user",
            wanted.name,
            problem,
            _again(f"set cn: system:node: and the name that kubelet has, in lower case, and o: [{_NODES}]"),
        )
    if has_names(certificate):
        yield Finding(
            "kubelet-client-names",
            wanted.name,
            "has names of hosts, and is a client's",
            _again("remove its hosts; they belong to the kubelet's serving certificate"),
        )


def _kubelet_server(wanted: Certificate, certificate: x509.Certificate, _cluster: Surroundings) -> Iterator[Finding]:
    yield from without_names(wanted, certificate)
    problem = _node_user(certificate)
    if problem:
        yield Finding("kubelet-server-user", wanted.name, problem, _again(f"set cn: system:node:NAME, o: [{_NODES}]"))


def _etcd_server(wanted: Certificate, certificate: x509.Certificate, _cluster: Surroundings) -> Iterator[Finding]:
    yield from without_names(wanted, certificate)


def _etcd_peer(wanted: Certificate, certificate: x509.Certificate, _cluster: Surroundings) -> Iterator[Finding]:
    _, addresses = san(certificate)
    if not has_names(certificate):
        yield Finding(
            "etcd-peer-names",
            wanted.name,
            "has neither names nor addresses; other members would refuse it",
            _again("give it the addresses of its member as hosts"),
        )
    elif not addresses:
        yield Finding(
            "etcd-peer-address",
            wanted.name,
            "has names but no address: its member depends on DNS, forward and reverse",
            _again("add the address from which the member speaks to the others"),
        )


_CHECKS: Mapping[str, Callable[[Certificate, x509.Certificate, Surroundings], Iterator[Finding]]] = {
    "apiserver": _apiserver,
    "kubelet-client": _kubelet_client,
    "kubelet-server": _kubelet_server,
    "etcd-server": _etcd_server,
    "etcd-peer": _etcd_peer,
}


def authorities(spec: Spec, found: Found) -> Iterator[Finding]:
    """The CA of the front proxy is nobody else's."""
    known = [(spec.authorities[name], entry.certificate) for name, entry in found.authorities.items()]
    proxies = {one.ca for one in spec.certificates if one.role == _PROXY}
    proxies |= {name for name, authority in spec.authorities.items() if authority.role == "front-proxy"}
    for proxy, one in known:
        for other, another in known:
            if proxy.name not in proxies or other.name in proxies or not one or not another:
                continue
            alike = "key" if one.public_key() == another.public_key() else ""
            alike = alike or ("subject" if one.subject == another.subject else "")
            if alike:
                yield Finding(
                    "front-proxy-ca",
                    proxy.stem,
                    f"has the {alike} of {other.stem}, {title(another)}: clients of the one pass for the other's",
                    f"give it a cn of its own; kubepki rotate trust SPEC {proxy.name} begins with a new CA",
                )
