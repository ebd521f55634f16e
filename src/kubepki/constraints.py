"""What a CA's own certificate lets it issue: its extended usages and name constraints, as verifiers read them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from cryptography import x509

from kubepki import usages
from kubepki.names import Name


def usages_beyond(ca: x509.Certificate, wanted: Sequence[str]) -> list[str]:
    """Extended usages, by their numbers, that a CA's own usages leave out (Go and OpenSSL take these for a limit)."""
    try:
        own = {one.dotted_string for one in ca.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value}
    except x509.ExtensionNotFound:
        return []
    return [] if usages.EXTENDED["any"] in own else [one for one in wanted if one not in own]


def refused(ca: x509.Certificate, names: Sequence[Name]) -> list[Name]:
    """DNS names and addresses that a CA's name constraints exclude (RFC 5280, 4.2.1.10)."""
    try:
        limits = ca.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return []
    return [name for name in names if not _permitted(name, limits)]


def _permitted(name: Name, limits: x509.NameConstraints) -> bool:
    if any(_within(name, one) for one in limits.excluded_subtrees or ()):
        return False
    kind = x509.IPAddress if name.kind == "ip" else x509.DNSName
    permitted = [one for one in limits.permitted_subtrees or () if isinstance(one, kind)]
    return name.kind not in ("dns", "ip") or not permitted or any(_within(name, one) for one in permitted)


def _within(name: Name, tree: x509.GeneralName) -> bool:
    if name.kind == "ip" and isinstance(tree, x509.IPAddress):
        network = tree.value
        return isinstance(network, (ipaddress.IPv4Network, ipaddress.IPv6Network)) and name.address in network
    if name.kind == "dns" and isinstance(tree, x509.DNSName):
        suffix, text = tree.value.lower().removeprefix("."), name.value.lower()
        return not suffix or text == suffix or text.endswith(f".{suffix}")
    return False
