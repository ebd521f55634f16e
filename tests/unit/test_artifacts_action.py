"""The action kubewright_artifacts, run by Ansible itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import yaml
from release_site import Site, good

ROOT = Path(__file__).resolve().parent.parent.parent


def command(arguments: dict[str, Any], *options: str) -> list[str]:
    action = ["-m", "kubewright_artifacts", "-a", json.dumps(arguments)]
    return [sys.executable, "-m", "ansible", "adhoc", "-i", "localhost,", "-c", "local", "localhost", *action, *options]


def environment(cache: str) -> dict[str, str]:
    return {**os.environ, "KUBEWRIGHT_CACHE": cache, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}


def run(cache: str, arguments: dict[str, Any], *options: str) -> tuple[str, dict[str, Any]]:
    """(what was shown before the result, the result)."""
    shown = subprocess.run(
        command(arguments, *options), cwd=ROOT, env=environment(cache), capture_output=True, text=True, check=False
    ).stdout
    before, _, result = shown.partition("=>")
    return before, yaml.safe_load(result)


def test_the_fact(tmp_path: Path) -> None:
    wanted = {"names": ["flanneld", "image-pause"], "source": "debian"}
    _, result = run(str(tmp_path), wanted, "--check")
    assert (result["changed"], result["missing"]) == (True, ["flanneld", "image-pause"])
    nothing = {"path": "", "sha256": "", "size": 0}
    pause = {"version": "3.2", "kind": "image", "image": {"reference": "image-pause", "id": ""}}
    assert result["ansible_facts"]["artifacts"]["image-pause"] == {**nothing, **pause}

    before, result = run(str(tmp_path), {**wanted, "names": ["flanneld"]}, "--diff")
    fact = result["ansible_facts"]["artifacts"]["flanneld"]
    assert f"+flanneld {fact['version']}\n" in before
    content = Path(fact["path"]).read_bytes()
    assert (fact["kind"], fact["size"], fact["image"]) == ("binary", len(content), {})
    assert fact["sha256"] == hashlib.sha256(content).hexdigest()

    before, result = run(str(tmp_path), {**wanted, "names": ["flanneld"]}, "--diff")
    assert (result["changed"], result["missing"], "+flanneld" in before) == (False, [], False)
    assert result["ansible_facts"]["artifacts"]["flanneld"] == fact


def test_progress_is_shown_while_it_works(tmp_path: Path) -> None:
    body = b"\x7fELF kubelet"
    shown = threading.Event()

    def answer_late(request: Any) -> None:
        shown.wait(20)
        good(body)(request)

    with Site() as site:
        checksum = good(hashlib.sha256(body).hexdigest().encode())
        site.answers = {"/kubelet": [answer_late], "/kubelet.sha256": [checksum]}
        wanted = {"names": ["kubelet"], "source": "mirror", "mirror_url": site.url}
        with subprocess.Popen(
            command(wanted), cwd=ROOT, env=environment(str(tmp_path)), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            try:
                assert process.stdout.readline() == "kubelet 1.20.2 from mirror\n"
                assert not shown.is_set()
                assert process.poll() is None
            finally:
                shown.set()
            assert "changed: true" in process.stdout.read()


def test_errors_are_messages(tmp_path: Path) -> None:
    for cache, arguments, message in [
        ("~no-such-user/x", {"names": ["etcd"], "source": "debian"}, "write the path in full"),
        (str(tmp_path), {"names": ["etcdd"], "source": "debian"}, "no artifact 'etcdd'"),
        (str(tmp_path), {"names": ["etcd"], "source": "mirror"}, "artifacts_mirror_url is empty"),
        (str(tmp_path), {"names": ["kubelet"], "source": "debian", "kubernetes_version": "x"}, "is not a Kubernetes"),
    ]:
        _, result = run(cache, arguments)
        assert message in result["msg"]
        assert "Traceback" not in str(result)
