"""The report over all machines: certificates that kubepki issued, as machines tell of them."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from test_topology import build, build_ha

from kubepki import issue, keys, reconcile, report, rotation, spec
from kubepki.check import Limits
from kubepki.compare import Renewal
from kubepki.errors import RotationError, StoreError
from kubewright import ca_rotation, certificates, certreport
from kubewright.errors import UserError
from kubewright.machine import certs, component, files
from kubewright.topology import Cluster

NOW = datetime.now(UTC)
LIMITS = Limits(30, 7)


@pytest.fixture
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("issued") / "pki"
    reconcile.apply(wanted(), directory, NOW)
    return directory


def wanted() -> spec.Spec:
    return spec.parse(certificates.spec(build()))


def told(directory: Path, machine: str, cluster: Cluster | None = None, **changes: Any) -> dict[str, Any]:
    """What a machine tells that has its part of the directory, with all services started on it."""
    found: list[dict[str, Any]] = []
    digests = {}
    for entry in certificates.distribution(cluster or build(), machine):
        sources = entry.get("sources") or [entry["source"]]
        text = "".join((directory / source).read_text() for source in sources)
        digests[entry["dest"]] = hashlib.sha256(text.encode()).hexdigest()
        if pem := certs.blocks(text):
            found.append({"path": entry["dest"], "sha256": digests[entry["dest"]], "pem": pem, "entries": []})
    authorities = certificates.spec(cluster or build())["cas"].values()
    units = {consumer.partition("@")[0] for authority in authorities for consumer in authority["consumers"]}
    running = {unit: {"active": True, "ingredients": dict(digests)} for unit in units}
    return {"files": found, "components": running, "served": [], **changes}


def of_kubelet(directory: Path) -> str:
    """A certificate as the controller manager gives it, by the CA that is in the directory now."""
    ca = issue.load((directory / "kubelet-signer-ca.pem").read_bytes(), "")
    key = keys.load((directory / "kubelet-signer-ca-key.pem").read_bytes(), "")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "system:node:x")])
    made = x509.CertificateBuilder(ca.subject, name, key.public_key(), 7, NOW, NOW + timedelta(days=1))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())  # type: ignore[arg-type]
    return made.add_extension(identifier, critical=False).sign(key, SHA256()).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def test_one_row_for_a_certificate_wherever_it_is(issued: Path) -> None:
    seen = [one for name in ("master01", "node01") for one in certreport.of_machine(name, told(issued, name))[0]]
    judged = certreport.judge(seen, [], NOW, LIMITS)
    assert certreport.failure(judged) == ""
    [kubernetes] = [one for one in judged.certificates if one.facts.subject == "CN=kubernetes-ca"]
    assert {spot.place.path.partition(":")[0] for spot in kubernetes.spots} == {"master01, node01"}
    assert "master01: /opt/kubernetes/ssl/apiserver.pem (" in report.table(judged, width=200)
    assert "kube-apiserver" in report.table(judged)


def test_what_ends_soon_fails_the_report(issued: Path) -> None:
    seen, _ = certreport.of_machine("node01", told(issued, "node01"))
    judged = certreport.judge(seen, [], NOW + timedelta(days=340), LIMITS)
    assert "ends-soon" in certreport.failure(judged)
    assert judged.state == "warning"
    assert certreport.judge(seen, [], NOW + timedelta(days=360), LIMITS).state == "critical"
    rows = certreport.data(seen, judged)["certificates"]
    assert rows[0]["state"] == "warning"
    assert rows[0]["days_left"] < 30
    assert json.dumps(rows)


def test_a_service_with_one_that_was_replaced_needs_a_restart(issued: Path) -> None:
    known = told(issued, "node01")
    known["components"]["etcd"]["ingredients"]["/opt/etcd/ssl/server.pem"] = "0" * 64
    known["served"] = [
        {
            "unit": "etcd",
            "where": "127.0.0.1:2379",
            "file": "/opt/etcd/ssl/server.pem",
            "pem": (issued / "etcd-peer-node01.pem").read_text(),
        },
        {"unit": "kubelet", "where": "127.0.0.1:10250", "file": "", "error": "refused"},
    ]
    seen, troubles = certreport.of_machine("node01", known)
    judged = certreport.judge(seen, troubles, NOW, LIMITS)
    texts = [one.text for one in judged.findings if one.kind == "restart-needed"]
    assert any("etcd runs with the one before it" in text for text in texts)
    assert any("etcd serves this one, and /opt/etcd/ssl/server.pem is another" in text for text in texts)
    assert "2 restart-needed" in certreport.failure(judged)
    assert [one.text for one in troubles] == ["kubelet: refused"]


def test_a_damaged_file_is_told(issued: Path) -> None:
    known = told(issued, "node01")
    known["files"][0]["pem"] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    _, troubles = certreport.of_machine("node01", known)
    assert [(one.kind, one.path) for one in troubles] == [("damaged", f"node01:{known['files'][0]['path']}")]


def test_what_lives_in_memory_is_renewed_by_a_certificate(issued: Path) -> None:
    pem = (issued / "apiserver.pem").read_text()
    known = told(issued, "master01")
    known["served"] = [{"unit": "kube-scheduler", "where": "127.0.0.1:10259", "file": "", "pem": pem}]
    seen, _ = certreport.of_machine("master01", known)
    assert certreport.to_renew(seen, NOW, 30) == []
    assert certreport.to_renew(seen, NOW + timedelta(days=350), 30) == ["kube-scheduler"]


def test_certificates_by_name_or_end_are_issued_anew(issued: Path) -> None:
    def names(renewal: Renewal, days: int = 0) -> set[str]:
        return set(reconcile.plan(wanted(), issued, NOW + timedelta(days=days), "", renewal).issued)

    every = {one.name for one in wanted().certificates}
    assert names(Renewal()) == set()
    assert names(Renewal(["kube-proxy"])) == {"kube-proxy"}
    assert names(Renewal((), timedelta(days=200)), 100) == set()
    assert names(Renewal((), timedelta(days=200)), 180) == every
    with pytest.raises(StoreError, match="did you mean kube-proxy"):
        names(Renewal(["kube-prox"]))


def test_a_load_balancer_is_waited_for(issued: Path) -> None:
    cluster = build_ha()
    distributed = {machine.name: certificates.distribution(cluster, machine.name) for machine in cluster.machines}
    seen = {"lb01": told(issued, "lb01", cluster)}
    found = {
        one.consumer: one
        for one in ca_rotation.shown(spec.parse(certificates.spec(cluster)), "kubernetes", distributed, seen)
    }
    [trusted] = found["kube-lb-check@lb01"].trusts
    assert [one.subject.rfc4514_string() for one in trusted] == ["CN=kubernetes-ca"]
    assert found["kube-lb-check@lb02"].problem == "lb02 is not part of this run, or did not answer"


def test_which_cas() -> None:
    known = ["kubernetes", "etcd"]
    assert ca_rotation.chosen("all", known) == known
    assert ca_rotation.chosen("etcd, kubernetes,etcd", known) == ["etcd", "kubernetes"]
    for text, says in (("", "which CA"), ("kubernete", "did you mean kubernetes"), ("x", "there are kubernetes, etcd")):
        with pytest.raises(UserError) as refused:
            ca_rotation.chosen(text, known)
        assert says in str(refused.value)


@pytest.mark.parametrize("name", ["kubernetes", "etcd", "front-proxy", "kubelet-signer"])
def test_a_rotation_goes_on_what_machines_show(issued: Path, name: str) -> None:
    machines = ("master01", "node01", "node02")
    files_of = {machine: certificates.distribution(build(), machine) for machine in machines}
    rotation.trust(wanted(), issued, name, NOW)

    def confirm(**changes: Any) -> list[str]:
        seen = {machine: {**told(issued, machine), **changes} for machine in machines}
        for one in seen.values():
            one["files"] += [{"path": path, "sha256": "", "pem": pem, "entries": []} for path, pem in held.items()]
            one["served"] = served
        problems = []
        for one in ca_rotation.shown(wanted(), name, files_of, seen):
            problems += [one.problem] if one.problem else []
            if one.trusts or one.presents:
                phase = rotation.state(wanted(), issued, name).phase
                shown = one.presents if phase == rotation.ISSUE_FROM_NEW else ()
                rotation.confirm(wanted(), issued, name, one.consumer, NOW, trusts=one.trusts, presents=shown)
        return problems

    held = dict.fromkeys(ca_rotation.KUBELET_FILES, of_kubelet(issued))
    served = [{"unit": "kubelet", "where": "10.0.0.1:10250", "file": "", "pem": of_kubelet(issued)}]
    stopped = {"components": {}}
    assert all("does not run on" in problem for problem in confirm(**stopped))
    assert rotation.state(wanted(), issued, name).missing
    assert confirm() == []
    assert rotation.state(wanted(), issued, name).missing == ()
    rotation.issue(wanted(), issued, name, NOW)
    reconcile.apply(wanted(), issued, NOW)
    if name == "kubelet-signer":
        # Theirs are from the controller manager.
        with pytest.raises(RotationError, match=r"kubelet@node01 shows .* from the old CA"):
            confirm()
        client, server = ca_rotation.KUBELET_FILES
        held.update({client: of_kubelet(issued), server: of_kubelet(issued)})
        served[:] = [{"unit": "kubelet", "where": "10.0.0.1:10250", "file": "", "error": "refused"}]
        assert "the kubelet of node01 shows no certificate at 10.0.0.1:10250: refused" in confirm()
        served.clear()
        del held[server]
        assert f"the kubelet of node01 has no {server}" in confirm()
        held[server] = held[client]
    assert confirm() == []
    assert rotation.state(wanted(), issued, name).missing == ()


def test_a_service_that_was_not_restarted_is_no_proof(issued: Path) -> None:
    known = told(issued, "master01")
    known["components"]["etcd"]["ingredients"]["/opt/etcd/ssl/ca.pem"] = "0" * 64
    files_of = {"master01": certificates.distribution(build(), "master01")}
    shown = ca_rotation.shown(wanted(), "etcd", files_of, {"master01": known})
    problems = {one.consumer: one.problem for one in shown}
    assert problems["etcd@master01"] == "etcd on master01 was not restarted since /opt/etcd/ssl/ca.pem changed"
    assert problems["kube-apiserver@master01"] == ""
    assert problems["etcd@node01"] == "node01 is not part of this run, or did not answer"


def test_only_public_parts_leave_a_machine(issued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "RECORDS", str(tmp_path / "records"))
    pem, key = (issued / "admin.pem").read_text(), (issued / "admin-key.pem").read_text()
    (tmp_path / "both.pem").write_text(key + pem)
    (tmp_path / "x.key").write_text(key)
    data = base64.b64encode(pem.encode()).decode()
    (tmp_path / "config").write_text(
        "clusters:\n- cluster:\n    certificate-authority: /ca.pem\n"
        f"users:\n- user:\n    client-certificate-data: {data}\n"
        f"    client-key-data: {base64.b64encode(key.encode()).decode()}\n"
    )
    for stamp in ("2025-01-01-00-00-00", "2026-01-01-00-00-00"):
        (tmp_path / f"kubelet-client-{stamp}.pem").write_text(pem)
    (tmp_path / "kubelet-client-current.pem").symlink_to("kubelet-client-2026-01-01-00-00-00.pem")
    found = certs.collect([str(tmp_path), "/nowhere"], [])
    assert "PRIVATE" not in json.dumps(found)
    assert base64.b64encode(key.encode()).decode() not in json.dumps(found)
    by_name = {Path(file["path"]).name: file for file in found["files"]}
    assert sorted(by_name) == ["both.pem", "config", "kubelet-client-current.pem"]
    assert by_name["both.pem"]["pem"] == pem
    assert by_name["both.pem"]["sha256"] == files.sha256_of(str(tmp_path / "both.pem"))
    assert by_name["config"]["entries"] == [{"entry": "cluster", "path": "/ca.pem"}, {"entry": "user", "pem": pem}]


def test_what_a_service_shows(issued: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued / "apiserver.pem", issued / "apiserver-key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as secured:
                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        shown = certs.serving({"unit": "x", "address": "127.0.0.1", "port": port, "file": "/f"})
        thread.join()
    own = issue.load((issued / "apiserver.pem").read_bytes(), "")
    assert issue.load(shown["pem"].encode(), "") == own
    gone = certs.serving({"unit": "x", "address": "127.0.0.1", "port": port})
    assert "refused" in gone["error"]
