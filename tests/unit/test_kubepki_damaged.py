"""What fuzzing has found: input that once ended in another exception, or in none."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kubepki import cfssljson, contents, crl, issue, keys, policy, request, spec
from kubepki.errors import PolicyError, PrivateKeyError, RequestError, SpecError, StoreError
from kubepki.keys import Key

_ED25519_OF_31_BYTES = bytes.fromhex("302d020100300506032b6570") + b"\x04\x21\x04\x1f" + b"x" * 31


def _profile(**fields: Any) -> bytes:
    default = {"usages": ["signing"], "expiry": "1h"}
    return json.dumps({"signing": {"default": default | fields}}).encode()


def _ignore(_: str) -> None:
    """Warnings do not matter here."""


def test_a_key_of_another_length() -> None:
    text = base64.encodebytes(_ED25519_OF_31_BYTES)
    pem = b"-----BEGIN PRIVATE KEY-----\n" + text + b"-----END PRIVATE KEY-----\n"
    with pytest.raises(PrivateKeyError, match="is damaged"):
        keys.load(pem, "it")
    assert [piece.problem for piece in contents.read(pem, "x.pem").keys] == ["private key 1 is damaged"]


def test_a_serial_number_of_160_bits() -> None:
    assert crl.serials(str(2**159 - 1).encode(), "it") == [2**159 - 1]
    with pytest.raises(RequestError, match="no serial number"):
        crl.serials(str(2**159).encode(), "it")


@pytest.mark.parametrize(
    "oid", ["0.40", "3.1", "1", "2.1." + "9" * 39, "2." + str(2**128 - 1), "1." * 200 + "1", "1.02"]
)
def test_what_is_no_object_identifier(oid: str) -> None:
    with pytest.raises(ValueError, match="object identifier"):
        issue.identifier(oid)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"names": [{"OID": {"0.40": "x"}}]}, "no object identifier"),
        ({"names": [{"E": "\u00e9@example.org"}]}, "X.520 allows ASCII"),
        ({"names": [{"C": "**"}]}, "X.520 allows letters"),
        ({"serialnumber": "a_b"}, "X.520 allows letters"),
        ({"extensions": [{"Id": [1, 40, 1], "Value": ""}]}, "Id is"),
        ({"extensions": [{"Id": [1, True], "Value": ""}]}, "Id is"),
        ({"extensions": [{"Id": [1, 2], "Value": "\u00e9"}]}, "not base64"),
    ],
)
def test_a_request_that_says_what_none_can_say(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        request.parse(json.dumps({"CN": "x"} | fields).encode(), "it", _ignore)


def test_an_extension_twice() -> None:
    twice = {"Id": [1, 2, 3], "Value": "BQA="}
    found = request.parse(json.dumps({"CN": "x", "extensions": [twice, twice]}).encode(), "it", _ignore)
    with pytest.raises(RequestError, match="cannot be made"):
        request.sign(found.subject, found.hosts, keys.generate(Key()), None, found.extensions)


@pytest.mark.parametrize(
    "fields",
    [
        {"not_before": "0001-01-01T00:00:00+01:00"},
        {"not_after": "9999-12-31T23:59:59-01:00"},
        {"name_whitelist": "a{99999999999999}"},
        {"name_whitelist": "(" * 5000 + ")" * 5000},
    ],
    ids=["year 0", "year 10000", "repeated", "nested"],
)
def test_a_profile_beyond_what_can_be_reckoned(fields: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(fields))):
        policy.parse(_profile(**fields), "it", _ignore)


def test_one_key_in_two_spellings() -> None:
    content = b'{"signing": {"default": {"usages": ["signing"], "expiry": "1h", "Expiry": "2h"}}}'
    with pytest.raises(PolicyError, match="given twice"):
        policy.parse(content, "it", _ignore)


@pytest.mark.parametrize("answer", [{"cert": "\ud800"}, {"ocspResponse": "\u00e9"}], ids=str)
def test_an_answer_that_no_file_can_hold(answer: dict[str, str]) -> None:
    with pytest.raises(StoreError, match="in the input is"):
        cfssljson._files(answer)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100000, "nested"),
        ("{a: " * 100000, "nested"),
        ("- " * 100000, "nested"),
        ("? " * 100000, "nested"),
        ("cas: {a: {cn: a, expiry: 2026-02-31}}", "day is out of range"),
        (f"cas: {{a: {{cn: {'9' * 5000}}}}}", "digits"),
        ("cas: {a: {cn: a}}\ncas: {b: {cn: b}}", "line 2: the key 'cas' is there twice"),
        ("cas:\n  a: {cn: a, o: [x],\n    cn: b}", "line 3: the key 'cn' is there twice"),
        ("&x cas: {a: {cn: a}}\n*x : {}", "line 2: the key 'cas' is there twice"),
        ("", "nothing in it"),
        ("# nothing\n", "nothing in it"),
        ("keypairs: {../x: {}}", "usable as a file name"),
        (f"cas: {{{'a' * 200}: {{cn: a}}}}", "usable as a file name"),
        ('cas: {a: {cn: "a\\0b"}}', "cannot be printed"),
        (f"cas: {{a: {{cn: a, o: [{'x' * 65}]}}}}", "X.509 allows 64"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_specification_that_is_none(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "spec.yml"
    path.write_text(content)
    with pytest.raises(SpecError, match=said):
        spec.load(path)


def test_a_long_specification_is_not_deep(tmp_path: Path) -> None:
    path = tmp_path / "spec.yml"
    entry = "- {name: c%d, ca: a, cn: x, profile: server, hosts: [a, '10.0.0.1']}\n"
    path.write_text("cas: {a: {cn: a}}\ncertificates:\n" + "".join(entry % number for number in range(1000)))
    assert len(spec.load(path).certificates) == 1000


def _with(**fields: Any) -> dict[str, Any]:
    entry = {"name": "c", "ca": "a", "cn": "x", "profile": "client"}
    return {"cas": {"a": {"cn": "a"}}, "certificates": [entry | fields]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"cas": {"a": {"cn": True}}}, "ca 'a': cn is True; write it in quotes"),
        ({"cas": {"a": {"cn": ["a", "b"]}}}, "ca 'a': cn is ['a', 'b']; write one text"),
        ({"cas": {"a": {"cn": "a", "role": True}}}, "ca 'a': role is True; write it in quotes"),
        ({"cas": {False: {"cn": "a"}}}, "cas: name is False; write it in quotes"),
        ({"keypairs": {83: {}}}, "keypairs: name is 83; write it in quotes"),
        (_with(name=83), "certificate 83: name is 83; write it in quotes"),
        (_with(hosts=["a", False]), "certificate 'c': host is False; write it in quotes"),
        (_with(hosts=[None]), "certificate 'c': host is None; write it in quotes"),
        (_with(path=1), "certificate 'c': path is 1; write it in quotes"),
        (_with(ca=1), "certificate 'c': ca is 1; write it in quotes"),
        (_with(profile=True), "certificate 'c': profile is True; write it in quotes"),
        (_with(owner=1000), "certificate 'c': owner is 1000; write it in quotes"),
        (_with(mode=640), "certificate 'c': mode 640; write \"0640\""),
        (_with(mode=0o644), "certificate 'c': mode 420; a key has 0600, 0400, 0640 or 0440"),
        (_with(key={"algo": "rsa", "size": "2048"}), "key size is '2048'; write the number without quotes"),
        ({"cas": {"a": {"cn": "a"}}, "cluster": {"dns_domain": False}}, "dns_domain is False; write it in quotes"),
    ],
    ids=str,
)
def test_what_is_no_text_becomes_no_name(data: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec.parse(data)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]


def test_a_password_that_is_a_number_is_not_shown() -> None:
    with pytest.raises(SpecError, match="password is neither env:NAME") as caught:
        spec.parse({"cas": {"a": {"cn": "a", "password": 4711}}})
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("owner", ["1000:1000", "0", "Build.User:www-data", "a.b"])
def test_owners_are_names_or_numbers(owner: str) -> None:
    assert spec.parse(_with(owner=owner)).certificates[0].owner == owner


def test_whose_specification_is_wrong_and_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "spec.yml").write_text("cas: {a: {}}")
    with pytest.raises(
        SpecError, match=f"the PKI specification {tmp_path}/spec.yml is wrong:\n  - ca 'a': cn is empty"
    ):
        spec.load(tmp_path / "spec.yml")
    with pytest.raises(StoreError, match="No such file") as caught:
        spec.load(tmp_path / "other.yml")
    assert "docs/pki.md" in caught.value.hint
