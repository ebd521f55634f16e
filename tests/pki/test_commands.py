"""The commands as people call them: what they issue, before everybody who verifies it; what they are given wrongly."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cfssl
import pytest
import yaml
from cfssl import Program, authority, gencert, write
from verifiers import go_request, go_revocation_list, verify_everywhere

KUBEPKI = cfssl.kubepki()
# As the procedures have them that this project automates.
USAGES = ["signing", "key encipherment", "server auth", "client auth"]
CONFIG = {
    "signing": {
        "default": {"expiry": "87600h"},
        "profiles": {
            "kubernetes": {"expiry": "87600h", "usages": USAGES},
            # Other keys than RSA encipher nothing (RFC 8813).
            "elliptic": {"expiry": "87600h", "usages": ["signing", "server auth", "client auth"]},
        },
    }
}
CA = {"CN": "kubernetes", "names": [{"C": "CN", "ST": "BeiJing", "L": "BeiJing", "O": "k8s", "OU": "System"}]}
RSA = {"algo": "rsa", "size": 2048}
HOSTS = ["192.168.80.10", "192.168.80.11", "kubernetes.default.svc.cluster.local", "m1.example.org"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a CA, a configuration and a request."""
    authority(KUBEPKI, tmp_path, CA)
    write(tmp_path, "config.json", CONFIG)
    write(tmp_path, "leaf.json", {"CN": "leaf", "hosts": HOSTS})
    return tmp_path


@pytest.mark.parametrize(
    "key", [RSA, {"algo": "ecdsa", "size": 256}, {"algo": "ecdsa", "size": 384}, {"algo": "ed25519"}]
)
def test_everybody_takes_what_gencert_and_sign_issue(tmp_path: Path, key: dict[str, Any]) -> None:
    authority(KUBEPKI, tmp_path, {**CA, "key": key})
    ca = (tmp_path / "ca.pem").read_bytes()
    profile = "-profile=kubernetes" if key == RSA else "-profile=elliptic"
    made = gencert(KUBEPKI, tmp_path, {"CN": "server", "hosts": HOSTS, "key": key}, CONFIG, [profile])
    assert made.code == 0, made.err
    for purpose, names in (("server", HOSTS), ("client", [])):
        verify_everywhere(made.json["cert"].encode(), [ca], purpose, names, made.json["key"].encode())
    assert go_request(made.json["csr"].encode())["error"] == ""
    csr = write(tmp_path, "x.csr", made.json["csr"])
    words = ["sign", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "-hostname", "x.example.org", csr]
    signed = KUBEPKI(*words, at=tmp_path).json["cert"].encode()
    verify_everywhere(signed, [ca], "server", ["x.example.org"], made.json["key"].encode())


def test_everybody_takes_a_renewed_ca_and_what_is_below_another(place: Path) -> None:
    made = gencert(KUBEPKI, place, {"CN": "leaf", "hosts": HOSTS}, CONFIG, ["-profile=elliptic"]).json
    words = ["gencert", "-renewca", "-ca", "ca.pem", "-ca-key", "ca-key.pem"]
    renewed = KUBEPKI(*words, at=place).json["cert"].encode()
    verify_everywhere(made["cert"].encode(), [renewed], "server", HOSTS, made["key"].encode())
    below = {"expiry": "80000h", "usages": ["cert sign", "crl sign"], "ca_constraint": {"is_ca": True}}
    config = {"signing": {"profiles": {"ca": below}}}
    between = gencert(KUBEPKI, place, {"CN": "between"}, config, ["-profile=ca"]).json
    write(place, "between.pem", between["cert"])
    write(place, "between-key.pem", between["key"])
    words = ["gencert", "-ca", "between.pem", "-ca-key", "between-key.pem", "leaf.json"]
    last = KUBEPKI(*words, at=place).json
    cas = [between["cert"].encode(), (place / "ca.pem").read_bytes()]
    verify_everywhere(last["cert"].encode(), cas, "server", HOSTS, last["key"].encode())


def test_go_takes_a_revocation_list(place: Path) -> None:
    write(place, "serials", "17\n18\n")
    made = KUBEPKI("gencrl", "serials", "ca.pem", "ca-key.pem", "3600", at=place)
    body = base64.encodebytes(base64.b64decode(made.out))
    revoked = b"-----BEGIN X509 CRL-----\n" + body + b"-----END X509 CRL-----\n"
    said = go_revocation_list(revoked, (place / "ca.pem").read_bytes())
    assert (said["error"], said["serials"]) == ("", ["17", "18"])


def _damaged(place: Path, name: str, source: str, position: float) -> str:
    text = (place / source).read_text()
    cut = int(len(text) * position)
    return write(place, name, text[:cut])


def test_what_is_given_wrongly(place: Path) -> None:
    """One line, exit code 1, no output."""
    made = KUBEPKI("genkey", "leaf.json", at=place).json
    flipped = bytearray(base64.b64decode("".join(made["csr"].splitlines()[1:-1])))
    flipped[40] ^= 1
    body = base64.encodebytes(flipped).decode()
    write(place, "bad.csr", f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n")
    write(place, "big.json", '{"CN": "' + "x" * (10 * 2**20) + '"}')
    write(place, "garbage", "\x00\x01 no PEM \n" * 99)
    (place / "directory").mkdir()
    ca = ["-ca", "ca.pem", "-ca-key", "ca-key.pem"]
    for words, said in [
        (["gencert", "-ca", _damaged(place, "cut.pem", "ca.pem", 0.7), *ca[2:], "leaf.json"], "cut.pem is damaged"),
        (["gencert", *ca[:3], _damaged(place, "cut-key.pem", "ca-key.pem", 0.7), "leaf.json"], "cut-key.pem"),
        (["gencert", "-ca", "garbage", *ca[2:], "leaf.json"], "garbage holds no certificate"),
        (["gencert", *ca[:3], "garbage", "leaf.json"], "garbage holds no private key"),
        (["gencert", *ca[:3], write(place, "other.pem", made["key"]), "leaf.json"], "the key is not that of ca.pem"),
        (["gencert", "-ca", "directory", *ca[2:], "leaf.json"], "directory: Is a directory"),
        (["gencert", *ca, "big.json"], "big.json: larger than 10 MB"),
        (["gencert", *ca, "directory"], "Is a directory"),
        (["sign", *ca, "bad.csr"], "bad.csr"),
        (["sign", *ca, "garbage"], "garbage holds no CSR"),
        (["certinfo", "-cert", "cut.pem"], "cut.pem is damaged"),
        (["certinfo", "-csr", "bad.csr"], "bad.csr"),
        (["bundle", "-cert", "ca.pem", "-ca-bundle", "garbage"], "garbage holds no certificate"),
        (["gencrl", "garbage", "ca.pem", "ca-key.pem"], "garbage, line 1"),
        (["gencrl", "/dev/null", "ca.pem", "ca-key.pem", "soon"], "no number of seconds"),
        (["info", "-remote", "127.0.0.1:1"], "Connection refused"),
        (["certinfo", "-domain", "127.0.0.1:1"], "Connection refused"),
    ]:
        reply = KUBEPKI(*words, at=place)
        assert (reply.code, reply.out) == (1, ""), (words, reply)
        message = reply.err.splitlines()[-1]
        assert said in json.loads(message)["message"], (words, message)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB that has room for nothing more than what is there."""
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_leaves_the_pair_that_is_there(full_disk: Path) -> None:
    authority(KUBEPKI, full_disk, CA)
    before = {path.name: path.read_bytes() for path in full_disk.iterdir()}
    answer = KUBEPKI("gencert", "-initca", "ca.json", at=full_disk).out
    with (full_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(512))
    reply = KUBEPKI("-bare", "ca", at=full_disk, stdin=answer, writer=True)
    assert (reply.code, reply.out) == (1, "")
    assert "No space left on device" in reply.err
    assert {path.name: path.read_bytes() for path in full_disk.iterdir() if path.name != "filler"} == before


def test_keys_are_nobody_else_s_whatever_the_umask(place: Path) -> None:
    answer = gencert(KUBEPKI, place, {"CN": "x", "hosts": ["x"]}, CONFIG, ["-profile=kubernetes"]).out
    (place / "old-key.pem").write_text("old")
    (place / "old-key.pem").chmod(0o644)
    writer = ("sh", "-c", 'umask 000; exec "$@"', "sh", *KUBEPKI.writer)
    for name in ("new", "old"):
        assert Program("kubepki", (), writer)("-bare", name, at=place, stdin=answer, writer=True).code == 0
        assert (place / f"{name}-key.pem").stat().st_mode & 0o777 == 0o600
        assert (place / f"{name}.pem").stat().st_mode & 0o777 == 0o644


def test_the_command_before_the_pipe_failed(place: Path) -> None:
    (place / "kept.pem").write_text("kept")
    reply = KUBEPKI("-bare", "kept", at=place, stdin="", writer=True)
    assert (reply.code, (place / "kept.pem").read_text()) == (1, "kept")
    assert "the command before the pipe failed" in reply.err


def test_a_reader_that_goes_away_is_no_traceback(place: Path) -> None:
    command = f"{' '.join(KUBEPKI.bare)} certinfo -cert ca.pem | true"
    environment = {**os.environ, "PYTHONPATH": str(cfssl.SOURCE)}
    reply = subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert reply.stderr == ""


def test_info_asks_a_real_server(cfssl_directory: Path, place: Path) -> None:
    """cfssl's own server, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "-address", "127.0.0.1", "-port", str(port), "-ca", "ca.pem", "-ca-key", "ca-key.pem"]
    server = subprocess.Popen(
        [cfssl_directory / "cfssl", *words], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            reply = KUBEPKI("info", "-remote", f"127.0.0.1:{port}", at=place)
            if reply.code == 0:
                break
        assert reply.code == 0, reply.err
        assert reply.json["certificate"].strip() == (place / "ca.pem").read_text().strip()
    finally:
        server.kill()
        server.wait()


def test_info_asks_something_else(place: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        reply = KUBEPKI("info", "-remote", f"127.0.0.1:{server.server_port}", at=place)
        server.shutdown()
    assert (reply.code, json.loads(reply.err)["code"]) == (1, 7000)
    assert "not that of a cfssl server" in reply.err


def test_a_set_as_its_users_keep_it(place: Path) -> None:
    """plan, apply, verify, check and rotate, one after the other."""
    wanted = {
        "cas": {"etcd": {"cn": "etcd-ca", "role": "etcd", "consumers": ["etcd"]}},
        "certificates": [
            {
                "name": "server",
                "ca": "etcd",
                "cn": "m1",
                "profile": "peer",
                "role": "etcd-server",
                "hosts": ["m1", "127.0.0.1", "localhost"],
                "consumers": ["etcd"],
            }
        ],
    }
    write(place, "set.yml", yaml.safe_dump(wanted))
    assert KUBEPKI("plan", "set.yml", at=place).code == 2
    assert "restart or reload: etcd" in KUBEPKI("apply", "set.yml", at=place).out
    assert KUBEPKI("plan", "set.yml", at=place).code == 0
    verified = KUBEPKI("verify", "set.yml", at=place)
    assert verified.code == 0, verified.out
    assert KUBEPKI("check", "pki", at=place).code == 0
    assert KUBEPKI("rotate", "trust", "set.yml", "etcd", at=place).code == 0
    early = KUBEPKI("rotate", "issue", "set.yml", "etcd", at=place)
    assert early.code == 1
    assert "etcd" in early.err
    shown = KUBEPKI("rotate", "status", "set.yml", "etcd", at=place)
    assert "trust-both" in shown.out


@pytest.mark.parametrize(
    "host",
    [
        "http://[x/",
        "http://[fe80::1%25eth0]/",
        "spiffe://a%zz/",
        "spiffe://a..b/x",
        "http://a^b/",
        "x://a:b:c",
        "x://",
        "x://a:port/",
    ],
)
def test_uris_that_go_cannot_read_are_refused(place: Path, host: str) -> None:
    made = gencert(KUBEPKI, place, {"CN": "x", "hosts": [host]}, CONFIG, ["-profile=elliptic"])
    assert (made.code, made.out) == (1, "")
    assert "no URI that verifiers can read" in made.err


@pytest.mark.parametrize(
    "host",
    ["spiffe://cluster.local/ns/a%20b?x=%C3%A4#y", "https://user@a.example:443/", "http://[2001:db8::1]:80/", "x://a"],
)
def test_uris_that_go_reads(place: Path, host: str) -> None:
    made = gencert(KUBEPKI, place, {"CN": "x", "hosts": [host]}, CONFIG, ["-profile=elliptic"])
    assert made.code == 0, made.err
    assert go_request(made.json["csr"].encode())["uris"] == [host]


def _own(place: Path, name: str, text: str) -> list[str]:
    """A CA by OpenSSL with these extensions; how gencert is told."""
    lines = f"[req]\ndistinguished_name=d\nx509_extensions=e\n[d]\n[e]\n{text}\n"
    write(place, f"{name}.conf", f"{lines}basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "99",
    ]
    files = ["-keyout", f"{name}-key.pem", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-config", f"{name}.conf"]
    subprocess.run([*command, *files], cwd=place, check=True, capture_output=True)
    return ["gencert", "-ca", f"{name}.pem", "-ca-key", f"{name}-key.pem", "-config", "config.json"]


def test_what_the_ca_may_not_issue(place: Path) -> None:
    write(place, "other.json", {"CN": "x", "hosts": ["a.other.example", "10.1.2.3"]})
    for name, extension, request, said in [
        ("clients", "extendedKeyUsage=clientAuth", "leaf.json", "is not for server auth"),
        (
            "limited",
            "nameConstraints=critical,permitted;DNS:other.example",
            "leaf.json",
            "kubernetes.default.svc.cluster",
        ),
        (
            "without",
            "nameConstraints=critical,excluded;IP:10.0.0.0/255.0.0.0",
            "other.json",
            "may not issue for 10.1.2.3",
        ),
    ]:
        words = _own(place, name, extension)
        for flags in ([], ["-compat"]):
            reply = KUBEPKI(*words, *flags, "-profile=elliptic", request, at=place)
            assert (reply.code, json.loads(reply.err.splitlines()[-1])["code"]) == (1, 5300), reply
            assert said in reply.err
    words = _own(place, "good", "nameConstraints=critical,permitted;DNS:other.example,permitted;IP:10.0.0.0/255.0.0.0")
    assert KUBEPKI(*words, "-profile=elliptic", "other.json", at=place).code == 0


def test_a_chain_that_was_cut_is_not_whole(place: Path) -> None:
    ca = (place / "ca.pem").read_text()
    write(place, "chain.pem", ca + ca[: len(ca) // 2])
    for words in (["bundle", "-flavor", "force", "-cert", "chain.pem"], ["certinfo", "-cert", "chain.pem"]):
        reply = KUBEPKI(*words, at=place)
        assert (reply.code, reply.out, reply.error) == (1, "", 1002)
        assert "2 certificates begin in it, and 1 are whole" in reply.err


def test_what_is_no_pem_is_not_written(place: Path) -> None:
    before = (place / "ca.pem").read_bytes()
    for answer in ({"cert": "oops"}, {"key": "abc"}, {"csr": "x"}):
        assert KUBEPKI("-bare", "ca", at=place, stdin=json.dumps(answer), writer=True).code == 1
    assert (place / "ca.pem").read_bytes() == before


def test_half_a_pair_beside_another_is_said(place: Path) -> None:
    answer = KUBEPKI("genkey", "leaf.json", at=place).out
    reply = KUBEPKI("-bare", "ca", at=place, stdin=answer, writer=True)
    assert reply.code == 0
    assert "ca.pem and ca-key.pem do not belong together now" in reply.err


@pytest.mark.parametrize(
    ("extension", "value"), [([2, 5, 29, 19], "AAAA"), ([2, 5, 29, 17], "AAAA"), ([2, 5, 29, 15], "")]
)
def test_extensions_that_are_no_asn1(place: Path, extension: list[int], value: str) -> None:
    request = {"CN": "x", "hosts": ["a"], "extensions": [{"Id": extension, "Value": value}]}
    made = gencert(KUBEPKI, place, request, CONFIG, ["-profile=elliptic"])
    assert (made.code, made.out, made.error) == (1, "", 9003)


@pytest.mark.parametrize(
    ("pattern", "name", "code"),
    [("^leaf$", "leaf\n", 1), ("^[[:alnum:].-]+$", "leaf", 0), (r"^\w+$", "б", 1), (r"^leaf\z", "leaf", 1)],
)
def test_white_lists_as_go_reads_them(place: Path, pattern: str, name: str, code: int) -> None:
    profile = {"expiry": "1h", "usages": ["signing", "client auth"], "name_whitelist": pattern}
    config = {"signing": {"profiles": {"k": profile}}}
    made = gencert(KUBEPKI, place, {"CN": name}, config, ["-profile=k"])
    assert made.code == code, made.err
    assert "Warning" not in made.err


def test_streams_that_are_closed_and_terminals_without_letters(place: Path) -> None:
    write(place, "bj.json", {"CN": "北京"})
    environment = {**os.environ, "PYTHONPATH": str(cfssl.SOURCE), "PYTHONIOENCODING": "ascii"}
    for redirect in ("", ">&-", "<&-", "2>&-"):
        command = f"{' '.join(KUBEPKI.bare)} gencert -initca bj.json {redirect}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, redirect


def test_small_things(place: Path) -> None:
    """A zero is a length of life; -cn stays where the CN was; what is a password is not repeated."""
    write(place, "zero.json", {"CN": "x", "ca": {"expiry": "0h"}})
    assert KUBEPKI("gencert", "-initca", "zero.json", at=place).error == 5200
    request = {"CN": "x", "serialnumber": "7", "names": [{"O": "o"}]}
    made = gencert(KUBEPKI, place, request, CONFIG, ["-profile=elliptic", "-cn", "yy"]).json["cert"]
    shown = KUBEPKI("certinfo", "-cert", write(place, "cn.pem", made), at=place).json
    assert shown["subject"]["names"] == ["o", "yy", "7"]
    words = ["gencert", "-ca", "ca.pem", "-ca-key", "ca-key.pem", "-ca-key-password", "S3cret", "leaf.json"]
    write(place, "encrypted.pem", "")
    assert "S3cret" not in KUBEPKI(*words, at=place).err
    made = gencert(KUBEPKI, place, {"CN": "x", "hosts": ["::ffff:10.0.0.1"]}, CONFIG, ["-profile=elliptic"]).json[
        "cert"
    ]
    assert KUBEPKI("certinfo", "-cert", write(place, "v4.pem", made), at=place).json["sans"] == ["10.0.0.1"]
    assert "bücher" not in gencert(KUBEPKI, place, {"CN": "x", "hosts": ["straße.example"]}).err
    assert "strasse" not in gencert(KUBEPKI, place, {"CN": "x", "hosts": ["straße.example"]}).err
