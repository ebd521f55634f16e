"""Each intended difference of docs/pki.md, shown on both programs."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cfssl
import facts
import pytest
from cfssl import Program, Reply, authority, gencert, write
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from kubepki import keys

DOCUMENT = cfssl.SOURCE.parent / "docs" / "pki.md"
K = ("-profile", "k")
LEAF = {"CN": "leaf", "hosts": ["a.example"]}


def config(**profile: Any) -> dict[str, Any]:
    base = {"expiry": "100h", "usages": ["signing", "server auth"]}
    return {"signing": {"default": base, "profiles": {"k": base | profile}}}


@dataclass(frozen=True)
class Both:
    """The two programs, and a directory with a CA for ten years."""

    theirs: Program
    ours: Program
    place: Path

    def gencert(
        self, request: object, configuration: object = None, flags: Sequence[str] = K
    ) -> tuple[Reply, Reply, Reply]:
        """The replies of cfssl, kubepki, and kubepki with -compat."""
        configuration = config() if configuration is None else configuration
        return (
            gencert(self.theirs, self.place, request, configuration, flags),
            gencert(self.ours, self.place, request, configuration, flags),
            gencert(self.ours, self.place, request, configuration, ("-compat", *flags)),
        )

    def call(self, *words: str) -> tuple[Reply, Reply, Reply]:
        return (
            self.theirs(*words, at=self.place),
            self.ours(*words, at=self.place),
            self.ours(words[0], "-compat", *words[1:], at=self.place),
        )


@pytest.fixture(scope="module")
def both(cfssl_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    place = tmp_path_factory.mktemp("different")
    theirs = cfssl.cfssl(cfssl_directory)
    authority(theirs, place, {"CN": "ca", "ca": {"expiry": "87600h"}})
    write(place, "leaf.json", LEAF)
    return Both(theirs, cfssl.kubepki(), place)


def lenient(replies: tuple[Reply, Reply, Reply], code: int, said: str) -> list[dict[str, Any]]:
    """cfssl and -compat do it, the latter with a warning; kubepki refuses. The two certificates, which are alike."""
    theirs, mine, compat = replies
    assert (theirs.code, mine.code, compat.code) == (0, 1, 0), (theirs.err, mine.err, compat.err)
    assert mine.error == code
    assert said in mine.err
    assert mine.out == ""
    assert "[WARNING]" in compat.err
    found = [facts.of(reply.json["cert"]) for reply in (theirs, compat)]
    assert facts.differences(*found) == {}
    return found


def never(replies: tuple[Reply, Reply, Reply], code: int, said: str) -> None:
    """cfssl does it; kubepki never."""
    theirs, mine, compat = replies
    assert (theirs.code, mine.code, compat.code) == (0, 1, 1), (theirs.err, mine.err)
    assert (mine.error, compat.error) == (code, code)
    assert mine.out == compat.out == ""
    assert said in mine.err


def unknown_profile(both: Both) -> None:
    replies = both.gencert(LEAF, flags=("-profile", "kk"))
    lenient(replies, 5400, "did you mean k?")


def unknown_usage(both: Both) -> None:
    replies = both.gencert(LEAF, config(usages=["signing", "server auth", "client-auth"]))
    lenient(replies, 5200, "did you mean 'client auth'?")


def unknown_key(both: Both) -> None:
    lenient(both.gencert({**LEAF, "expire": "1h"}), 9003, "unknown key 'expire'")
    lenient(both.gencert(LEAF, config(usage=["client auth"])), 5200, "did you mean 'usages'?")


def repeated_key(both: Both) -> None:
    lenient(both.gencert('{"CN":"a","hosts":["a.example"],"hosts":["b.example"]}'), 9003, "'hosts' is given twice")


def names_serial(both: Both) -> None:
    replies = both.gencert({**LEAF, "names": [{"SerialNumber": "7"}]})
    lenient(replies, 9003, "write serialnumber at the top")


def no_ca(both: Both) -> None:
    theirs, mine, compat = both.call("gencert", "leaf.json")
    assert (theirs.code, theirs.out) == (0, "")
    assert (mine.code, compat.code) == (1, 1)
    assert "-ca ca.pem" in mine.err
    made = both.ours("genkey", "leaf.json", at=both.place).json
    theirs, mine, compat = both.call("sign", write(both.place, "sign.csr", made["csr"]))
    assert (theirs.code, theirs.out, mine.code, compat.code) == (0, "", 1, 1)


def _below(both: Both, name: str, configuration: object, request: object = None) -> list[str]:
    """A certificate of the CA that is to be an issuer itself; the arguments that say so."""
    made = gencert(both.theirs, both.place, request or {"CN": name}, configuration, K)
    assert made.code == 0, made.err
    both.theirs("-bare", name, at=both.place, stdin=made.out, writer=True)
    return ["gencert", "-ca", f"{name}.pem", "-ca-key", f"{name}-key.pem"]


def issuer_no_ca(both: Both) -> None:
    never(both.call(*_below(both, "leaf", config()), "leaf.json"), 1000, "is no CA")


def issuer_may_not_sign(both: Both) -> None:
    words = _below(both, "mute", config(usages=["signing"], ca_constraint={"is_ca": True}))
    never(both.call(*words, "leaf.json"), 1000, "lacks the signing of certificates")


def issuer_expired(both: Both) -> None:
    past = config(
        usages=["cert sign"],
        ca_constraint={"is_ca": True},
        not_before="2020-01-01T00:00:00Z",
        not_after="2021-01-01T00:00:00Z",
    )
    never(both.call(*_below(both, "past", past), "leaf.json"), 1000, "expired on 2021-01-01")


def issuer_not_yet(both: Both) -> None:
    future = config(
        usages=["cert sign"],
        ca_constraint={"is_ca": True},
        not_before="2035-01-01T00:00:00Z",
        not_after="2036-01-01T00:00:00Z",
    )
    never(both.call(*_below(both, "future", future), "leaf.json"), 1000, "is valid from 2035-01-01")


def path_length(both: Both) -> None:
    constraint = {"is_ca": True, "max_path_len": 0, "max_path_len_zero": True}
    words = _below(both, "last", config(usages=["cert sign"], ca_constraint=constraint))
    another = write(both.place, "ca-config.json", config(usages=["cert sign"], ca_constraint={"is_ca": True}))
    never(both.call(*words, "-config", another, *K, "leaf.json"), 5300, "has the path length 0")


def issuer_limits(both: Both) -> None:
    """Go's verifier refuses what such a CA signs."""
    below = config(usages=["cert sign", "client auth"], ca_constraint={"is_ca": True})
    never(both.call(*_below(both, "clients", below), "leaf.json"), 5300, "is not for server auth")


def weak_ca(both: Both) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-keyout", "weak-key.pem", "-out", "weak.pem"]
    subprocess.run([*words, "-subj", "/CN=weak", "-days", "99"], cwd=both.place, capture_output=True, check=True)
    never(both.call("gencert", "-ca", "weak.pem", "-ca-key", "weak-key.pem", "leaf.json"), 2400, "has 1024 bits")


def outlives_ca(both: Both) -> None:
    theirs, mine, compat = both.gencert(LEAF, config(expiry="876000h"))
    assert (theirs.code, mine.code, compat.code) == (0, 0, 0)
    ca = x509.load_pem_x509_certificate((both.place / "ca.pem").read_bytes())
    ends = [x509.load_pem_x509_certificate(one.json["cert"].encode()).not_valid_after_utc for one in (theirs, mine)]
    assert ends[0] > ca.not_valid_after_utc
    assert ends[1] == ca.not_valid_after_utc
    assert "cut to that" in mine.err
    assert "it would outlive its CA" in compat.err
    assert facts.differences(facts.of(theirs.json["cert"]), facts.of(compat.json["cert"])) == {}


def born_expired(both: Both) -> None:
    never(both.gencert(LEAF, config(expiry="-5h")), 5200, "would have expired already")
    never(both.gencert(LEAF, config(expiry="2m")), 5200, "has expired already")
    never(
        both.call("gencert", "-initca", write(both.place, "short.json", {"CN": "x", "ca": {"expiry": "4m"}})), 5200, ""
    )


def empty_host(both: Both) -> None:
    theirs, mine, compat = both.gencert({"CN": "x", "hosts": ["", "a.example"]})
    assert (theirs.code, mine.code, compat.code) == (0, 1, 0)
    assert ("DNSName", "") in facts.of(theirs.json["cert"])["SubjectAlternativeName"]
    assert "hosts: '' is empty" in mine.err
    assert facts.of(compat.json["cert"])["SubjectAlternativeName"] == [("DNSName", "a.example")]
    alone = both.gencert({"CN": "x", "hosts": [""]}, config(usages=["client auth"]))[2]
    assert "SubjectAlternativeName" not in facts.of(alone.json["cert"])


def trailing_dot(both: Both) -> None:
    theirs, mine, compat = both.gencert({"CN": "x", "hosts": ["a.example."]})
    assert (theirs.code, mine.code, compat.code) == (0, 1, 0)
    assert "write a.example" in mine.err
    assert facts.of(compat.json["cert"])["SubjectAlternativeName"] == [("DNSName", "a.example")]


def malformed_host(both: Both) -> None:
    for host in ("10.0.0.1:6443", "host:80", "10.0.0.0/24", " 10.0.0.5", "a b", "010.0.0.1", "[::1]", "/foo", "a..b"):
        never(both.gencert({"CN": "x", "hosts": [host]}), 9003, f"{host!r}"[1:-1])
    _, mine, compat = both.gencert({"CN": "x", "hosts": ["bücher.example"]})
    assert (mine.code, compat.code) == (1, 1)
    assert "xn--bcher-kva.example" in mine.err


def uri_host(both: Both) -> None:
    theirs, mine, _ = both.gencert({"CN": "x", "hosts": ["spiffe://cluster/ns"]})
    assert facts.of(theirs.json["cert"])["SubjectAlternativeName"] == [("DNSName", "spiffe://cluster/ns")]
    assert facts.of(mine.json["cert"])["SubjectAlternativeName"] == [
        ("UniformResourceIdentifier", "spiffe://cluster/ns")
    ]


def repeated_host(both: Both) -> None:
    theirs, mine, _ = both.gencert({"CN": "x", "hosts": ["a", "a"]})
    assert facts.of(theirs.json["cert"])["SubjectAlternativeName"] == [("DNSName", "a"), ("DNSName", "a")]
    assert facts.of(mine.json["cert"])["SubjectAlternativeName"] == [("DNSName", "a")]


def repeated_usage(both: Both) -> None:
    theirs, mine, _ = both.gencert(LEAF, config(usages=["email protection", "s/mime"]))
    counts = [facts.of(one.json["cert"])["ExtendedKeyUsage"].count("1.3.6.1.5.5.7.3.4") for one in (theirs, mine)]
    assert counts == [2, 1]


def nobody(both: Both) -> None:
    never(both.gencert({}), 9003, "would name nobody")


def long_names(both: Both) -> None:
    never(both.gencert({"CN": "x" * 65, "hosts": ["a"]}), 9003, "CN has 65 characters, X.509 allows 64")
    never(both.gencert({**LEAF, "names": [{"C": "China"}]}), 9003, "must be the two letters of a country")


def more_names(both: Both) -> None:
    theirs, mine, _ = both.gencert({**LEAF, "names": [{"O": "o", "E": "a@b.example", "OID": {"1.2.3.4": "v"}}]})
    counts = [len(facts.of(one.json["cert"])["subject"]) for one in (theirs, mine)]
    assert counts == [2, 4]


def idle_settings(both: Both) -> None:
    lenient(both.gencert(LEAF, config(allowed_extensions=["1.2.3"])), 5200, "kubepki does not do this")


def malformed_uri(both: Both) -> None:
    for host in ("http://[x/", "spiffe://a%zz/", "spiffe://a..b/x"):
        never(both.gencert({"CN": "x", "hosts": [host]}), 9003, "no URI that verifiers can read")


def ca_hosts(both: Both) -> None:
    theirs, mine, _ = both.call(
        "gencert", "-initca", write(both.place, "named.json", {"CN": "x", "hosts": ["10.0.0.1"]})
    )
    assert "SubjectAlternativeName" in facts.of(theirs.json["cert"])
    assert "SubjectAlternativeName" not in facts.of(mine.json["cert"])
    assert "a CA has no names" in mine.err


def ed25519(both: Both) -> None:
    theirs, mine, _ = both.gencert({**LEAF, "key": {"algo": "ed25519"}})
    assert (theirs.code, mine.code) == (1, 0)
    assert mine.json["key"].startswith("-----BEGIN PRIVATE KEY-----")
    odd = mine.json["key"].replace("PRIVATE KEY", "Ed25519 PRIVATE KEY")
    write(both.place, "odd.pem", odd)
    assert both.ours("gencsr", "-key", "odd.pem", "leaf.json", at=both.place).code == 0


def ec_default_usages(both: Both) -> None:
    words = ["gencert", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "leaf.json"]
    theirs, mine, _ = both.call(*words)
    found = [facts.of(one.json["cert"])["KeyUsage"] for one in (theirs, mine)]
    assert ["key_encipherment=True" in one for one in found] == [True, False]
    assert all("digital_signature=True" in one for one in found)


def cert_sign_without_ca(both: Both) -> None:
    never(both.gencert(LEAF, config(usages=["signing", "cert sign"])), 5200, "makes no CA")
    never(both.gencert(LEAF, config(usages=["signing"], ca_constraint={"is_ca": True})), 5200, "may not sign")


def weak_csr(both: Both) -> None:
    command = ["openssl", "req", "-newkey", "rsa:1024", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=weak"]
    csr = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = ["sign", "-ca", "ca.pem", "-ca-key", "ca-key.pem", write(both.place, "weak.csr", csr)]
    never(both.call(*words), 2400, "has 1024 bits")


def encrypted_ca_key(both: Both) -> None:
    key = keys.load((both.place / "ca-key.pem").read_bytes(), "key")
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")).decode()
    write(both.place, "encrypted.pem", encrypted)
    write(both.place, "password", "secret\n")
    words = ["gencert", "-ca", "ca.pem", "-ca-key", "encrypted.pem"]
    variables = {"CFSSL_CA_PK_PASSWORD": "secret"}
    theirs, mine = (
        program(*words, "leaf.json", at=both.place, environment=variables) for program in (both.theirs, both.ours)
    )
    assert (theirs.code, mine.code) == (1, 0), mine.err
    assert both.ours(*words, "-ca-key-password", "file:password", "leaf.json", at=both.place).code == 0
    wrong = both.ours(*words, "leaf.json", at=both.place, environment={"CFSSL_CA_PK_PASSWORD": "wrong"})
    none = both.ours(*words, "leaf.json", at=both.place)
    assert [(one.code, one.error) for one in (wrong, none)] == [(1, 2100), (1, 2100)]
    assert "wrong" not in wrong.err.replace("right", "")


def selfsign_hostname(both: Both) -> None:
    theirs, mine, _ = both.call("selfsign", "h.example", "leaf.json")
    found = [facts.of(one.json["cert"]) for one in (theirs, mine)]
    assert "SubjectAlternativeName" not in found[0]
    assert found[1]["SubjectAlternativeName"] == [("DNSName", "h.example"), ("DNSName", "a.example")]
    assert found[0]["life"] == found[1]["life"]


def late_flags(both: Both) -> None:
    theirs, mine, _ = both.call("gencert", "leaf.json", "-ca", "ca.pem", "-ca-key", "ca-key.pem")
    assert (theirs.code, theirs.out) == (0, "")
    assert mine.code == 2
    assert "-ca comes after leaf.json" in mine.err


def remote(both: Both) -> None:
    _, mine, compat = both.call("gencert", "-remote", "127.0.0.1:1", "leaf.json")
    assert (mine.code, compat.code) == (1, 1)
    assert "-remote" in mine.err


def messages(both: Both) -> None:
    theirs, mine, _ = both.call("gencert", "-initca", "none.json")
    assert (theirs.code, mine.code) == (1, 1)
    assert not theirs.err.startswith("{")
    assert sorted(json.loads(mine.err.splitlines()[-1])) == ["code", "hint", "message"]


def certinfo_more(both: Both) -> None:
    made = gencert(both.ours, both.place, {"CN": "x", "hosts": ["a@b.example", "https://u.example"]}, config(), K)
    words = ["certinfo", "-cert", write(both.place, "more.pem", made.json["cert"])]
    theirs, mine, _ = both.call(*words)
    assert "sans" not in theirs.json
    assert mine.json["sans"] == ["a@b.example", "https://u.example"]
    assert mine.json["usages"] == ["signing", "server auth"]
    assert mine.json["key"] == {"algo": "ecdsa", "size": 256}


def certinfo_first(both: Both) -> None:
    ca = (both.place / "ca.pem").read_text()
    theirs, mine, _ = both.call("certinfo", "-cert", write(both.place, "two.pem", ca + ca))
    assert (theirs.code, theirs.error, mine.code) == (1, 1003, 0)
    assert "holds 2 certificates: this is the first" in mine.err


def certinfo_csr(both: Both) -> None:
    made = both.ours("genkey", "leaf.json", at=both.place).json
    theirs, mine, _ = both.call("certinfo", "-csr", write(both.place, "info.csr", made["csr"]))
    assert "RawTBSCertificateRequest" in theirs.json
    assert mine.json["subject"]["common_name"] == "leaf"
    assert mine.json["sans"] == ["a.example"]


def bundle_status(both: Both) -> None:
    _below(both, "bundled", config())
    theirs, mine, _ = both.call("bundle", "-cert", "bundled.pem", "-ca-bundle", "ca.pem", "-int-bundle", "ca.pem")
    assert any("Windows XP" in message for message in theirs.json["status"]["messages"])
    assert (mine.json["status"]["messages"], mine.json["status"]["code"]) == ([], 0)
    assert "leaf_expires" in mine.json


def crl_number(both: Both) -> None:
    write(both.place, "serials", "7\n7\n")
    theirs, mine, _ = both.call("gencrl", "serials", "ca.pem", "ca-key.pem")
    lists = [x509.load_der_x509_crl(base64.b64decode(one.out)) for one in (theirs, mine)]
    numbers = [[one.oid.dotted_string for one in found.extensions].count("2.5.29.20") for found in lists]
    assert numbers == [0, 1]
    write(both.place, "words", "abc\n")
    never(both.call("gencrl", "words", "ca.pem", "ca-key.pem"), 9003, "line 1")


def key_modes(both: Both) -> None:
    answer = gencert(both.theirs, both.place, LEAF, config(), K).out
    modes = []
    for program in (both.theirs, both.ours):
        name = f"modes-{program.name}"
        (both.place / f"{name}-key.pem").touch(0o644)
        assert program("-bare", name, at=both.place, stdin=answer, writer=True).code == 0
        modes.append((both.place / f"{name}-key.pem").stat().st_mode & 0o777)
    assert modes == [0o644, 0o600]


def mixed_answers(both: Both) -> None:
    first, second = (gencert(both.theirs, both.place, LEAF, config(), K).json for _ in range(2))
    answer = json.dumps({**first, "key": second["key"]})
    theirs, mine = (
        program("-bare", f"mixed-{program.name}", at=both.place, stdin=answer, writer=True)
        for program in (both.theirs, both.ours)
    )
    assert (theirs.code, mine.code) == (0, 1)
    assert "do not belong together" in mine.err
    assert not list(both.place.glob("mixed-kubepki*"))


def checked_answers(both: Both) -> None:
    answer = json.dumps({"cert": "oops"})
    theirs, mine = (
        program("-bare", f"oops-{program.name}", at=both.place, stdin=answer, writer=True)
        for program in (both.theirs, both.ours)
    )
    assert (theirs.code, mine.code) == (0, 1)
    assert not (both.place / "oops-kubepki.pem").exists()


def print_defaults(both: Both) -> None:
    theirs, mine, _ = (
        both.theirs("print-defaults", "x", at=both.place),
        both.ours("print-defaults", "x", at=both.place),
        0,
    )
    assert (theirs.code, mine.code) == (0, 1)
    assert "csr" in mine.err


DIFFERENCES: dict[str, Callable[[Both], None]] = {
    name.replace("_", "-"): function
    for name, function in list(globals().items())
    if getattr(function, "__annotations__", {}).get("both") == "Both" and not name.startswith(("_", "test"))
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_difference(name: str, both: Both) -> None:
    DIFFERENCES[name](both)


def test_the_document_has_every_difference() -> None:
    section = DOCUMENT.read_text().partition("## Where kubepki differs from cfssl")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE)
    assert listed == list(DIFFERENCES)
