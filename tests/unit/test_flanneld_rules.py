from __future__ import annotations

from flanneld.config import Network
from flanneld.rules import chains, differences, parse_save, supports_random_fully, transaction

WANTED = chains(Network("10.5.0.0/16"), Network("10.5.66.0/24"), masquerade=True, forward=True, random_fully=True)
GOOD = """\
*nat
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.66.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.66.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.66.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FORWARD DROP [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""


def test_good_rules_differ_in_nothing() -> None:
    assert differences(WANTED, parse_save(GOOD)) == []


def test_order_duplicates_and_losses_are_noticed() -> None:
    lines = GOOD.splitlines()
    swapped = [*lines[:5], lines[6], lines[5], *lines[7:]]
    doubled = [*lines[:5], lines[4], *lines[5:]]
    assert differences(WANTED, parse_save("\n".join(swapped))) == [
        "chain FLANNEL-POSTRTG has other rules than it should"
    ]
    assert differences(WANTED, parse_save("\n".join(doubled))) == [
        "POSTROUTING jumps to FLANNEL-POSTRTG 2 times instead of once"
    ]
    assert len(differences(WANTED, parse_save(""))) == 4
    foreign = GOOD.replace("-A FLANNEL-FWD -d", "-A FLANNEL-FWD -s 192.0.2.1/32 -j DROP\n-A FLANNEL-FWD -d")
    assert len(differences(WANTED, parse_save(foreign))) == 1


def test_one_transaction_sets_everything_and_touches_nothing_else() -> None:
    text = transaction(WANTED, parse_save(""))
    assert [line for line in text.splitlines() if line.startswith("-A")] == [
        GOOD.splitlines()[4],
        *GOOD.splitlines()[5:11],
        *GOOD.splitlines()[15:18],
    ]
    doubled = GOOD.replace(GOOD.splitlines()[4], "\n".join([GOOD.splitlines()[4]] * 2))
    again = transaction(WANTED, parse_save(doubled))
    assert again.count("-D POSTROUTING") == 2
    assert "172.17" not in again
    assert "-D FORWARD" not in again


def test_options_leave_things_out() -> None:
    plain = chains(Network("10.5.0.0/16"), Network("10.5.66.0/24"), masquerade=True, forward=False, random_fully=False)
    assert [chain.name for chain in plain] == ["FLANNEL-POSTRTG"]
    assert "--random-fully" not in transaction(plain, parse_save(""))


def test_versions_that_know_random_fully() -> None:
    assert supports_random_fully("iptables v1.8.9 (nf_tables)")
    assert not supports_random_fully("iptables v1.6.1")
    assert not supports_random_fully("")
