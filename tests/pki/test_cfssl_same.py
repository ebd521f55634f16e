"""What cfssl gives, field by field."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cfssl
import facts
import pytest
from cfssl import Program, Reply, authority, gencert, write
from cryptography import x509

BOTH = "signing", "key encipherment", "server auth", "client auth"
CONFIG = {"signing": {"default": {"expiry": "87600h"}, "profiles": {"k": {"expiry": "8760h", "usages": BOTH}}}}
LEAF = {"CN": "leaf", "hosts": ["a.example", "10.0.0.1"]}
RSA = {"algo": "rsa", "size": 2048}


@pytest.fixture(scope="session")
def original(cfssl_directory: Path) -> Program:
    return cfssl.cfssl(cfssl_directory)


@pytest.fixture(scope="session")
def ours() -> Program:
    return cfssl.kubepki()


@pytest.fixture(scope="module")
def place(original: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA of cfssl's, and others."""
    directory = tmp_path_factory.mktemp("differential")
    names = [{"C": "CN", "ST": "BeiJing", "L": "BeiJing", "O": "k8s", "OU": "4Paradigm"}]
    authority(original, directory, {"CN": "kubernetes", "names": names, "ca": {"expiry": "876000h"}})
    for bits in (2048, 3072, 4096):
        authority(original, directory, {"CN": f"rsa{bits}", "key": {"algo": "rsa", "size": bits}}, f"rsa{bits}")
    authority(original, directory, {"CN": "p384", "key": {"size": 384}}, "p384")
    return directory


def config(**profile: Any) -> dict[str, Any]:
    return {"signing": {"profiles": {"k": {"expiry": "8760h", "usages": ["signing"]} | profile}}}


K = ("-profile", "k")
REQUESTS: dict[str, tuple[object, object, tuple[str, ...]]] = {
    "documents": (
        {
            "CN": "flanneld",
            "hosts": [],
            "key": RSA,
            "names": [{"C": "CN", "ST": "BeiJing", "L": "BeiJing", "O": "k8s", "OU": "4Paradigm"}],
        },
        {
            "signing": {
                "default": {"expiry": "87600h"},
                "profiles": {"kubernetes": {"usages": BOTH, "expiry": "87600h"}},
            }
        },
        ("-profile=kubernetes",),
    ),
    "p256": (LEAF, CONFIG, K),
    "p384": ({**LEAF, "key": {"size": 384}}, CONFIG, K),
    "p521": ({**LEAF, "key": {"algo": "ecdsa", "size": 521}}, CONFIG, K),
    "rsa3072": ({**LEAF, "key": {"algo": "rsa", "size": 3072}}, CONFIG, K),
    "rsa default profile": ({**LEAF, "key": RSA}, None, ()),
    "empty signing": ({**LEAF, "key": RSA}, {"signing": {}}, ()),
    "null key": ({**LEAF, "key": None}, CONFIG, K),
    "keys in another case": ({"cn": "leaf", "HOSTS": ["a"], "KEY": {"ALGO": "ecdsa"}}, CONFIG, K),
    "hosts of all kinds": (
        {"CN": "x", "hosts": ["b.example", "10.1.2.3", "a@b.example", "::1", "*.a.example", "etcd_1", "2001:DB8::7"]},
        CONFIG,
        K,
    ),
    "no hosts": ({"CN": "x"}, CONFIG, K),
    "no CN": ({"hosts": ["a.example"]}, CONFIG, K),
    "several organisations": ({"CN": "x", "names": [{"C": "CN", "O": "o1"}, {"O": "o2", "OU": "u"}]}, CONFIG, K),
    "serial number of the subject": ({"CN": "x", "serialnumber": "7"}, CONFIG, K),
    "not ASCII in the subject": ({"CN": "北京", "names": [{"O": "é"}]}, CONFIG, K),
    "-hostname": (LEAF, CONFIG, (*K, "-hostname", "b.example,10.9.9.9")),
    "-hostname=": (LEAF, CONFIG, (*K, "-hostname=b.example")),
    "--flags": (LEAF, CONFIG, ("--profile=k",)),
    "KU only": (LEAF, config(usages=["signing", "content committment", "data encipherment", "key agreement"]), K),
    "agreement bits": (LEAF, config(usages=["key agreement", "encipher only"]), K),
    "EKU only": (LEAF, config(usages=["client auth", "server auth"]), K),
    "every EKU": (
        LEAF,
        config(
            usages=[
                "any",
                "code signing",
                "email protection",
                "ipsec end system",
                "ipsec tunnel",
                "ipsec user",
                "timestamping",
                "ocsp signing",
                "microsoft sgc",
                "netscape sgc",
            ]
        ),
        K,
    ),
    "urls": (
        LEAF,
        config(ocsp_url="http://o.example", crl_url="http://c.example", issuer_urls=["http://i.example"]),
        K,
    ),
    "backdate": (LEAF, config(backdate="1h"), K),
    "minutes and seconds": (LEAF, config(expiry="24h30m30s"), K),
    "fixed times": (LEAF, config(not_before="2026-01-01T00:00:00Z", not_after="2060-01-01T00:00:00Z"), K),
    "white list": (LEAF, config(name_whitelist="^(leaf|a[.]example)$"), K),
    "a CA below": (
        {"CN": "below"},
        config(usages=["cert sign", "crl sign"], ca_constraint={"is_ca": True, "max_path_len": 1}),
        K,
    ),
    "no OCSP check": (LEAF, config(usages=["ocsp signing"], ocsp_no_check=True), K),
    "policies": (
        LEAF,
        config(Policies=[{"ID": "1.3.6.1.4.1.44363.9", "Qualifiers": [{"Type": "id-qt-cps", "Value": "http://p"}]}]),
        K,
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_gencert(case: str, place: Path, original: Program, ours: Program) -> None:
    request, configuration, flags = REQUESTS[case]
    theirs, mine = (gencert(program, place, request, configuration, flags) for program in (original, ours))
    assert (theirs.code, mine.code) == (0, 0), mine.err
    assert mine.out.count("\n") == 1
    assert list(mine.json) == list(theirs.json) == ["cert", "csr", "key"]
    assert facts.differences(facts.of(theirs.json["cert"]), facts.of(mine.json["cert"])) == {}
    assert facts.of_csr(theirs.json["csr"]) == facts.of_csr(mine.json["csr"])
    label = [text.partition("\n")[0] for text in (theirs.json["key"], mine.json["key"])]
    assert label[0] == label[1]
    assert facts.same_key(mine.json["cert"], mine.json["key"])


@pytest.mark.parametrize("ca", ["rsa2048", "rsa3072", "rsa4096", "p384"])
def test_the_hash_is_as_strong_as_the_key_of_the_ca(ca: str, place: Path, original: Program, ours: Program) -> None:
    words = ["gencert", "-ca", f"{ca}.pem", "-ca-key", f"{ca}-key.pem", write(place, "leaf.json", LEAF)]
    found = [facts.of(program(*words, at=place).json["cert"])["algorithm"] for program in (original, ours)]
    assert found[0] == found[1]


INITCA: dict[str, object] = {
    "plain": {"CN": "ca"},
    "rsa": {"CN": "ca", "key": RSA, "names": [{"C": "CN", "ST": "BeiJing", "L": "BeiJing", "O": "k8s"}]},
    "expiry": {"CN": "ca", "ca": {"expiry": "8760h"}},
    "path length": {"CN": "ca", "ca": {"pathlen": 2}},
    "path length 0": {"CN": "ca", "ca": {"pathlen": 0, "pathlenzero": True}},
    "path length not said": {"CN": "ca", "ca": {"pathlen": 0}},
    "DNS names": {"CN": "ca", "hosts": ["a.example"]},
}


@pytest.mark.parametrize("case", INITCA)
def test_initca(case: str, place: Path, original: Program, ours: Program) -> None:
    name = write(place, "initca.json", INITCA[case])
    theirs, mine = (program("gencert", "-initca", name, at=place) for program in (original, ours))
    assert list(theirs.json) == list(mine.json) == ["cert", "csr", "key"]
    assert facts.differences(facts.of(theirs.json["cert"]), facts.of(mine.json["cert"])) == {}
    by_key = [program("genkey", "-initca", name, at=place) for program in (original, ours)]
    assert list(by_key[0].json) == list(by_key[1].json)
    assert facts.differences(facts.of(by_key[0].json["cert"]), facts.of(by_key[1].json["cert"])) == {}


def test_a_root_anew_for_its_key(place: Path, original: Program, ours: Program) -> None:
    words = ["gencert", "-initca", "-ca-key", "ca-key.pem", "ca.json"]
    theirs, mine = (program(*words, at=place) for program in (original, ours))
    assert list(theirs.json) == list(mine.json) == ["cert", "csr"]
    assert facts.differences(facts.of(theirs.json["cert"]), facts.of(mine.json["cert"])) == {}
    assert facts.same_key(mine.json["cert"], (place / "ca-key.pem").read_text())


def test_renewca_keeps_the_bytes_of_the_name(place: Path, original: Program, ours: Program) -> None:
    words = ["gencert", "-renewca", "-ca", "ca.pem", "-ca-key", "ca-key.pem"]
    theirs, mine = (program(*words, at=place) for program in (original, ours))
    assert list(theirs.json) == list(mine.json) == ["cert"]
    assert facts.differences(facts.of(theirs.json["cert"]), facts.of(mine.json["cert"])) == {}
    old, new = (x509.load_pem_x509_certificate(t.encode()) for t in ((place / "ca.pem").read_text(), mine.json["cert"]))
    assert old.subject.public_bytes() == new.subject.public_bytes()
    assert old.serial_number != new.serial_number


def test_genkey_and_sign(place: Path, original: Program, ours: Program) -> None:
    name = write(place, "genkey.json", LEAF)
    made = [program("genkey", name, at=place).json for program in (original, ours)]
    assert list(made[0]) == list(made[1]) == ["csr", "key"]
    assert facts.of_csr(made[0]["csr"]) == facts.of_csr(made[1]["csr"])
    subject = write(place, "subject.json", {"CN": "other", "names": [{"O": "o"}]})
    csr = write(place, "sign.csr", made[0]["csr"])
    configuration = write(place, "config.json", CONFIG)
    ca = ["-ca", "ca.pem", "-ca-key", "ca-key.pem", "-config", configuration, *K]
    for rest in ([csr], ["-hostname", "x.example,10.1.1.1", csr], [csr, subject], ["-csr", csr]):
        theirs, mine = (program("sign", *ca, *rest, at=place) for program in (original, ours))
        assert list(theirs.json) == list(mine.json) == ["cert", "csr"]
        assert mine.json["csr"] == made[0]["csr"]
        assert facts.differences(facts.of(theirs.json["cert"]), facts.of(mine.json["cert"])) == {}, rest


def test_standard_input(place: Path, original: Program, ours: Program) -> None:
    words = ["gencert", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "-"]
    theirs, mine = (program(*words, at=place, stdin=json.dumps({**LEAF, "key": RSA})) for program in (original, ours))
    assert facts.differences(facts.of(theirs.json["cert"]), facts.of(mine.json["cert"])) == {}


def test_the_ca_from_file_and_environment(place: Path, ours: Program) -> None:
    variables = {"CA_PEM": (place / "ca.pem").read_text(), "CA_KEY": (place / "ca-key.pem").read_text()}
    name = write(place, "leaf.json", LEAF)
    for ca, key in (("env:CA_PEM", "env:CA_KEY"), ("file:ca.pem", "file:ca-key.pem")):
        assert ours("gencert", "-ca", ca, "-ca-key", key, name, at=place, environment=variables).code == 0


def _info(program: Program, place: Path, pem: str) -> dict[str, Any]:
    return program("certinfo", "-cert", write(place, "info.pem", pem), at=place).json


def test_certinfo(place: Path, original: Program, ours: Program) -> None:
    names = [{"C": "CN", "ST": "BeiJing", "L": "BeiJing", "O": "k8s", "OU": "u"}, {"O": "k9s"}]
    request = {"CN": "x", "hosts": ["a.example", "10.0.0.1", "::1"], "names": names, "serialnumber": "7"}
    pem = gencert(original, place, request, CONFIG, K).json["cert"]
    theirs, mine = _info(original, place, pem), _info(ours, place, pem)
    beyond = {"key", "ca", "usages"}
    # Its identifiers lack the zero of a byte below 16.
    for field in ("authority_key_id", "subject_key_id"):
        theirs[field] = ":".join(part.zfill(2) for part in theirs[field].split(":"))
    assert {key: value for key, value in mine.items() if key not in beyond} == theirs
    assert [key for key in mine if key not in beyond] == list(theirs)
    assert beyond <= mine.keys()


@pytest.mark.parametrize("flavor", ["ubiquitous", "optimal", "force"])
def test_bundle(flavor: str, place: Path, original: Program, ours: Program) -> None:
    below = gencert(
        original, place, {"CN": "between"}, config(usages=["cert sign"], ca_constraint={"is_ca": True}), K
    ).json
    write(place, "between.pem", below["cert"])
    write(place, "between-key.pem", below["key"])
    words = ["gencert", "-ca", "between.pem", "-ca-key", "between-key.pem", write(place, "leaf.json", LEAF)]
    leaf = original(*words, at=place).json
    write(place, "chain.pem", leaf["cert"] + below["cert"])
    write(place, "leaf-key.pem", leaf["key"])
    words = [
        "bundle",
        "-cert",
        "chain.pem",
        "-key",
        "leaf-key.pem",
        "-ca-bundle",
        "ca.pem",
        "-int-bundle",
        "between.pem",
    ]
    theirs, mine = (program(*words, "-flavor", flavor, at=place).json for program in (original, ours))
    told = {"status", "hostnames", "leaf_expires"}
    assert sorted(theirs["hostnames"]) == [name for name in mine["hostnames"] if name != "10.0.0.1"]
    assert theirs["status"].keys() == mine["status"].keys()
    same = {key: value for key, value in mine.items() if key not in told}
    assert same == {key: value for key, value in theirs.items() if key not in told}


def test_gencrl(place: Path, original: Program, ours: Program) -> None:
    write(place, "serials", "123\n456\n\n")
    replies = [program("gencrl", "serials", "ca.pem", "ca-key.pem", at=place) for program in (original, ours)]
    theirs, mine = (x509.load_der_x509_crl(base64.b64decode(reply.out)) for reply in replies)
    ca = x509.load_pem_x509_certificate((place / "ca.pem").read_bytes())
    assert mine.issuer.public_bytes() == ca.subject.public_bytes()
    assert mine.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    assert [one.serial_number for one in mine] == [one.serial_number for one in theirs] == [123, 456]
    assert mine.next_update_utc
    assert theirs.next_update_utc
    assert mine.next_update_utc - mine.last_update_utc == theirs.next_update_utc - theirs.last_update_utc
    assert mine.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


@pytest.mark.parametrize("kind", ["config", "csr"])
def test_print_defaults(kind: str, place: Path, original: Program, ours: Program) -> None:
    theirs, mine = (program("print-defaults", kind, at=place) for program in (original, ours))
    assert mine.json == theirs.json
    assert mine.out.strip() == theirs.out.strip()


def test_templates_are_what_the_commands_take(place: Path, ours: Program) -> None:
    request, configuration = (ours("print-defaults", kind, at=place).out for kind in ("csr", "config"))
    assert gencert(ours, place, request, configuration, ("-profile", "www")).code == 0


@pytest.mark.parametrize("umask", ["022", "002"])
def test_cfssljson(umask: str, tmp_path: Path, place: Path, original: Program, ours: Program) -> None:
    answer = gencert(original, place, LEAF, CONFIG, K).out
    for name, command in ((one.name, one.writer) for one in (original, ours)):
        program = Program(name, (), ("sh", "-c", f'umask {umask}; exec "$@"', "sh", *command))
        (tmp_path / name).mkdir()
        assert program("-bare", "leaf", at=tmp_path / name, stdin=answer, writer=True).code == 0
        shown = program("-bare", "-stdout", at=tmp_path / name, stdin=answer, writer=True)
        assert "BEGIN CERTIFICATE" in shown.out
    theirs, mine = (sorted((tmp_path / name).iterdir()) for name in ("cfssl", "kubepki"))
    assert [path.name for path in theirs] == [path.name for path in mine] == ["leaf-key.pem", "leaf.csr", "leaf.pem"]
    assert [path.read_bytes() for path in theirs] == [path.read_bytes() for path in mine]
    assert [f"{path.stat().st_mode & 0o777:o}" for path in mine] == ["600", "644", "644"]


def test_cfssljson_of_the_api(tmp_path: Path, place: Path, original: Program, ours: Program) -> None:
    made = gencert(original, place, LEAF, CONFIG, K).json
    result = {"certificate": made["cert"], "certificate_request": made["csr"], "private_key": made["key"]}
    answer = json.dumps({"success": True, "result": result, "errors": [], "messages": []})
    write(tmp_path, "answer", answer)
    for program in (original, ours):
        assert program("-f", "answer", program.name, at=tmp_path, writer=True).code == 0
    for end in (".pem", "-key.pem", ".csr"):
        assert (tmp_path / f"cfssl{end}").read_text() == (tmp_path / f"kubepki{end}").read_text()


# (files, arguments) that both refuse, with the same exit code, and the same number where cfssl says one.
REFUSED: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "no file": ({}, ("gencert", "-initca", "none.json")),
    "cut JSON": ({"x": '{"CN":'}, ("gencert", "-initca", "x")),
    "trailing comma": ({"x": '{"CN":"x",}'}, ("gencert", "-initca", "x")),
    "garbage after": ({"x": '{"CN":"x"} x'}, ("gencert", "-initca", "x")),
    "a list": ({"x": "[1]"}, ("gencert", "-initca", "x")),
    "hosts as a text": ({"x": '{"hosts":"a"}'}, ("gencert", "-initca", "x")),
    "CN as a number": ({"x": '{"CN":1}'}, ("gencert", "-initca", "x")),
    "rsa 1024": ({"x": {"CN": "x", "key": {"algo": "rsa", "size": 1024}}}, ("gencert", "-initca", "x")),
    "rsa 16384": ({"x": {"CN": "x", "key": {"algo": "rsa", "size": 16384}}}, ("gencert", "-initca", "x")),
    "rsa without size": ({"x": {"CN": "x", "key": {"algo": "rsa"}}}, ("genkey", "x")),
    "curve": ({"x": {"CN": "x", "key": {"size": 100}}}, ("genkey", "x")),
    "dsa": ({"x": {"CN": "x", "key": {"algo": "dsa", "size": 2048}}}, ("genkey", "x")),
    "CA expiry": ({"x": {"CN": "x", "ca": {"expiry": "365d"}}}, ("gencert", "-initca", "x")),
    "ca in a leaf": (
        {"x": {"CN": "x", "ca": {"expiry": "1h"}}},
        ("gencert", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "x"),
    ),
    "CA without a name": ({"x": {}}, ("gencert", "-initca", "x")),
    "wrong key": ({}, ("gencert", "-ca", "ca.pem", "-ca-key", "p384-key.pem", "ca.json")),
    "CA is no PEM": ({}, ("gencert", "-ca", "ca.json", "-ca-key", "ca-key.pem", "leaf.json")),
    "CA is not there": ({}, ("gencert", "-ca", "none", "-ca-key", "ca-key.pem", "leaf.json")),
    "key is no PEM": ({}, ("gencert", "-ca", "ca.pem", "-ca-key", "ca.json", "leaf.json")),
    "config is cut": (
        {"x": '{"signing'},
        ("gencert", "-config", "x", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "leaf.json"),
    ),
    "config is not there": ({}, ("gencert", "-config", "none", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "leaf.json")),
    "no signing": ({"x": {}}, ("gencert", "-config", "x", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "leaf.json")),
    "CSR is none": ({}, ("sign", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "ca.json")),
    "CSR is not there": ({}, ("sign", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "none")),
    "certinfo of none": ({}, ("certinfo", "-cert", "ca.json")),
    "certinfo of nothing": ({}, ("certinfo",)),
    "bundle of none": ({}, ("bundle", "-cert", "ca.json")),
    "bundle without root": ({}, ("bundle", "-cert", "rsa2048.pem", "-ca-bundle", "ca.pem", "-int-bundle", "ca.pem")),
    "no arguments": ({}, ("gencert",)),
    "gencrl without arguments": ({}, ("gencrl",)),
    "selfsign without arguments": ({}, ("selfsign",)),
    "print-defaults without arguments": ({}, ("print-defaults",)),
    "unknown flag": ({}, ("gencert", "-nosuch", "leaf.json")),
    "flag without value": ({}, ("gencert", "-ca")),
    "unknown command": ({}, ("nosuch",)),
    "no command": ({}, ()),
}
PROFILES: dict[str, object] = {
    "default without expiry": {"signing": {"default": {}}},
    "default without usages": {"signing": {"default": {"expiry": "1h"}}},
    "profile without expiry": {"signing": {"profiles": {"k": {"usages": ["signing"]}}}},
    "profile without usages": {"signing": {"profiles": {"k": {"expiry": "1h"}}}},
    "all usages unknown": config(usages=["serverauth"]),
    "days": config(expiry="365d"),
    "expiry as a number": config(expiry=1),
    "white list does not match": config(name_whitelist="^zz$"),
    "white list is no expression": config(name_whitelist="["),
    "auth_key is not there": config(auth_key="x"),
    "remote is not there": config(remote="x"),
}


def refused_alike(theirs: Reply, mine: Reply) -> None:
    assert mine.out == ""
    assert (mine.code, mine.error) == (theirs.code, theirs.error or mine.error), (theirs.err, mine.err)


@pytest.mark.parametrize("case", REFUSED)
def test_what_both_refuse(case: str, place: Path, original: Program, ours: Program) -> None:
    files, words = REFUSED[case]
    write(place, "leaf.json", LEAF)
    for name, content in files.items():
        write(place, name, content)
    theirs, mine = (program(*words, at=place) for program in (original, ours))
    refused_alike(theirs, mine)


@pytest.mark.parametrize("case", PROFILES)
def test_profiles_that_both_refuse(case: str, place: Path, original: Program, ours: Program) -> None:
    flags = () if case.startswith("default") else K
    theirs, mine = (gencert(program, place, LEAF, PROFILES[case], flags) for program in (original, ours))
    assert theirs.code == 1
    refused_alike(theirs, mine)
