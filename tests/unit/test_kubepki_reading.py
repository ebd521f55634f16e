from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubepki import policy, request, usages
from kubepki.errors import KubepkiError, PolicyError, RequestError


def refused(content: str | bytes, *, compat: bool = False) -> str:
    text = content.encode() if isinstance(content, str) else content
    with pytest.raises(KubepkiError) as caught:
        request.parse(text, "csr.json", lambda _: None, compat=compat)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "csr.json is empty"),
        ('{"CN": "x",}', "remove the comma before it"),
        ('{"CN": "x" // name\n}', "remove the comments"),
        ('{"CN": "x"} {}', "line 1, column 13"),
        ('{"CN": NaN}', "NaN is not a value of JSON"),
        (b'{"CN": "\xff"}', "is not in UTF-8: byte 8"),
        ("[" * 100_000, "is nested too deeply"),
        ("9" * 5000, "is no JSON"),
        ('"x"', 'it is "x"; write {...}'),
        ('{"CN": 1}', "CN is 1; write a text in quotes"),
        ('{"hosts": "x"}', 'hosts is "x"; write a list in [ ]'),
        ('{"hosts": ["a", 5]}', "hosts has 5 in it; write a text in quotes"),
        ('{"names": {"C": "CN"}}', 'names is {"C": "CN"}; write a list in [ ]'),
        ('{"names": ["x"]}', 'names[0] is "x"; write {...}'),
        ('{"names": [{"C": "CN", "Orga": "x"}]}', "unknown key 'names[0].Orga'"),
        ('{"key": {"algo": "rsa", "size": "2048"}}', 'key.size is "2048"; write a number without quotes'),
        ('{"CN": "x", "host": ["a"]}', "did you mean 'hosts'?"),
        ('{"CN": "x", "ca": {"expiry": "5y"}}', "write 43800h"),
        ('{"CN": "x", "ca": {"pathlen": 1, "pathlenzero": true}}', "contradicts pathlen 1"),
        ('{"CN": "x", "extensions": [{"Id": [1, 2], "Value": "?"}]}', "extensions[0].Value is not base64"),
        ('{"CN": "x", "names": [{"OID": {"1.2.x": "y"}}]}', "write numbers with dots"),
    ],
)
def test_what_is_wrong_and_where(content: str | bytes, said: str) -> None:
    assert said in refused(content)


def test_all_mistakes_at_once() -> None:
    said = refused('{"CN": 1, "hosts": ["", "10.0.0.0/8"], "nmes": [], "names": [{"C": "China"}]}')
    for expected in ("CN is 1", "'' is empty", "looks like a network", "did you mean 'names'?", "two letters"):
        assert expected in said


def test_ten_megabytes_are_refused_at_once() -> None:
    begin = time.monotonic()
    assert "has 10485760 bytes" in refused(b"[" * (10 * 2**20))
    assert time.monotonic() - begin < 5


def test_leniency_warns() -> None:
    warnings: list[str] = []
    content = b'{"CN": "x", "expire": "1h", "hosts": ["", "a."], "cn": "y"}'
    found = request.parse(content, "csr.json", warnings.append, compat=True)
    assert [str(name) for name in found.hosts] == ["a"]
    assert [text for text in warnings if "'CN' is given twice" in text]
    assert len(warnings) == 4
    assert all(text.startswith("csr.json: ") for text in warnings)


def test_extensions_of_the_file() -> None:
    content = (
        b'{"CN": "x", "delegation_enabled": true, "extensions": [{"Id": [1, 2, 3], "Critical": true, "Value": "BQA="}]}'
    )
    found = request.parse(content, "csr.json", lambda _: None).extensions
    assert [(one.oid.dotted_string, one.critical) for one in found] == [
        ("1.2.3", True),
        ("1.3.6.1.4.1.44363.44", False),
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["CN", "hosts", "names", "key", "ca", "serialnumber", "extensions", "crl_url", "delegation_enabled"]
PROFILE = ["usages", "expiry", "backdate", "ca_constraint", "not_before", "name_whitelist", "Policies", "CSRWhitelist"]


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_request_is_read_or_refused(value: object) -> None:
    try:
        request.parse(json.dumps(value).encode(), "x", lambda _: None, compat=True)
    except KubepkiError as error:
        assert error.message.startswith(("x", "invalid", "RSA"))  # noqa: PT017 - both ways are right


@given(st.dictionaries(st.sampled_from(PROFILE), json_values))
def test_any_profile_is_read_or_refused(value: object) -> None:
    content = json.dumps({"signing": {"profiles": {"p": value}}}).encode()
    try:
        policy.parse(content, "x", lambda _: None)
    except PolicyError as error:
        assert error.message.startswith("x: ")  # noqa: PT017 - as above


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"usages": ["sign"], "expiry": "1h"}, "did you mean 'signing'?"),
        ({"usages": ["signing"], "expiry": "365d"}, "write 8760h"),
        ({"usages": ["signing"]}, 'write "8760h" for a year'),
        ({"usages": ["signing"], "expiry": "1h", "not_before": "tomorrow"}, "write 2030-01-31T00:00:00Z"),
        ({"usages": ["signing"], "expiry": "1h", "ct_log_servers": ["x"]}, "submits certificates to logs"),
        ({"expiry": "1h"}, "usages is empty"),
    ],
)
def test_profiles_say_what_to_write(profile: dict[str, object], said: str) -> None:
    content = json.dumps({"signing": {"profiles": {"p": profile}}}).encode()
    with pytest.raises(PolicyError) as caught:
        policy.parse(content, "x", lambda _: None)
    assert said in str(caught.value)


def test_a_request_of_a_ca_says_so() -> None:
    found = request.parse(b'{"CN": "x", "ca": {"expiry": "1h", "pathlenzero": true}}', "x", lambda _: None)
    assert found.ca
    assert found.ca.path_length == 0


def test_the_error_is_the_caller_s() -> None:
    with pytest.raises(RequestError):
        request.parse(b"{", "x", lambda _: None)


def test_a_profile_keeps_a_usage_with_its_former_name() -> None:
    warnings: list[str] = []
    content = b'{"signing": {"default": {"expiry": "1h", "usages": ["signing", "content committment"]}}}'
    found = policy.parse(content, "x", warnings.append).default
    assert found
    assert usages.key(found.usages) == {"digital_signature", "content_commitment"}
    assert warnings == []
