"""A real API server with RBAC and its etcd on the loopback, and subnet managers in processes of their own."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flannel_lab import Pki, until

from kubewright.artifacts.catalog import Settings, ensure

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "flannel.alpha.coreos.com/"
CONDITION = "NetworkUnavailable"

RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
]
"""All that flanneld may do."""

_TOKENS = """\
admin-token,admin,1,"system:masters"
flannel-token,flannel,2
reader-token,reader,3
stranger-token,stranger,4
"""


class Api:
    """Both daemons. Nodes are those that tests make: there is no kubelet and no controller manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pki = Pki(directory)
        self.etcd_url, self.peer_url = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
        self.port = _free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        artifacts = ensure(["etcd", "kube-apiserver"], Settings("debian", ROOT / "artifacts.lock.yml"), lambda _: None)
        for name, artifact in artifacts.items():
            (directory / name).symlink_to(artifact.path)  # the API server wants to be called by its name
        (directory / "tokens.csv").write_text(_TOKENS)
        # The key of service accounts has to be in the old form.
        form, none = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        key = ec.generate_private_key(ec.SECP256R1())
        (directory / "accounts.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))

    def start(self) -> None:
        self.start_etcd()
        self.start_api()
        self._grant()

    def start_etcd(self) -> None:
        peer = self.peer_url
        self._run(
            "etcd",
            f"--data-dir={self.directory / 'data'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )

    def _grant(self) -> None:
        roles = "/apis/rbac.authorization.k8s.io/v1"
        for name, rules in (("flannel", RULES), ("reader", RULES[:2])):
            self.admin("POST", f"{roles}/clusterroles", {"metadata": {"name": name}, "rules": rules})
            subjects = [
                {"kind": "User", "name": user} for user in ((name, "flanneld") if name == "flannel" else (name,))
            ]
            if name == "flannel":
                subjects.append({"kind": "ServiceAccount", "name": "flannel", "namespace": "default"})
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
            binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": subjects}
            self.admin("POST", f"{roles}/clusterrolebindings", binding)
        until(20, lambda: self.ask("GET", "/api/v1/namespaces/default")[0] == 200, self.evidence)
        self.admin("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "flannel"}})

    def start_api(self) -> None:
        self._run(
            "kube-apiserver",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--insecure-port=0",
            # Nobody is to be led here: no endpoint of the Service `kubernetes` may be on the loopback.
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--etcd-servers={self.etcd_url}",
            f"--tls-cert-file={self.pki.server}",
            f"--tls-private-key-file={Pki.key(self.pki.server)}",
            f"--client-ca-file={self.pki.ca}",
            f"--service-account-key-file={self.directory / 'accounts.key'}",
            f"--service-account-signing-key-file={self.directory / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/16",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--feature-gates=IPv6DualStack=true",
        )
        until(60, self._is_ready, self.evidence)

    def stop_api(self) -> None:
        self._end("kube-apiserver", signal.SIGKILL)

    def stop_etcd(self) -> None:
        self._end("etcd", signal.SIGTERM)

    def close(self) -> None:
        for name in list(self._processes):
            self._end(name, signal.SIGKILL)

    def evidence(self) -> str:
        return "\n".join(f"{name}: {self._log(name).read_text()[-3000:]}" for name in self._processes)

    def ask(self, method: str, path: str, body: Any = None, content: str = "application/json") -> tuple[int, Any]:
        """(status, decoded answer) of a request of the administrator's."""
        context = ssl.create_default_context(cafile=str(self.pki.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        try:
            headers = {"Authorization": "Bearer admin-token", "Content-Type": content}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            text = reply.read().decode()
            return reply.status, json.loads(text) if text.startswith("{") else text
        finally:
            connection.close()

    def admin(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        status, answer = self.ask(method, path, body, content)
        assert status in {200, 201}, (method, path, status, answer)
        return answer

    def node(self, name: str) -> Any:
        return self.admin("GET", f"/api/v1/nodes/{name}")

    def make_node(self, name: str, *cidrs: str, annotations: dict[str, str] | None = None) -> None:
        """What the kubelet does, and the controller manager."""
        spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
        about = {"name": name, **({"annotations": annotations} if annotations else {})}
        self.admin("POST", "/api/v1/nodes", {"metadata": about, "spec": spec})

    def patch_node(self, name: str, patch: Any, part: str = "") -> None:
        self.admin("PATCH", f"/api/v1/nodes/{name}{part}", patch, "application/strategic-merge-patch+json")

    def annotate(self, name: str, **annotations: str | None) -> None:
        """Annotations by their words; None removes one."""
        words = {PREFIX + word.replace("_", "-"): value for word, value in annotations.items()}
        self.patch_node(name, {"metadata": {"annotations": words}})

    def delete_node(self, name: str) -> None:
        assert self.ask("DELETE", f"/api/v1/nodes/{name}")[0] in {200, 404}

    def annotations(self, name: str) -> dict[str, str]:
        """Those of flannel, by their words."""
        found = self.node(name)["metadata"].get("annotations") or {}
        return {key[len(PREFIX) :]: value for key, value in found.items() if key.startswith(PREFIX)}

    def condition(self, name: str) -> dict[str, str] | None:
        found = self.node(name)["status"].get("conditions") or []
        return next((one for one in found if one["type"] == CONDITION), None)

    def service_account_token(self) -> str:
        path = "/api/v1/namespaces/default/serviceaccounts/flannel/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str(self.admin("POST", path, body)["status"]["token"])

    def etcd(self, path: str, body: dict[str, Any]) -> Any:
        """Ask etcd behind the API server's back; `key` and `value` are text."""
        sent = {
            key: base64.b64encode(value.encode()).decode() if key in {"key", "value"} else value
            for key, value in body.items()
        }
        connection = http.client.HTTPConnection(self.etcd_url.removeprefix("http://"), timeout=10)
        try:
            connection.request("POST", f"/v3/kv/{path}", json.dumps(sent))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def kubeconfig(self, name: str = "flannel", **user: Any) -> Path:
        """A kubeconfig in YAML of a user, with the token of this name unless something else is given."""
        path = self.directory / f"{name}.kubeconfig"
        user = user or {"token": f"{name}-token"}
        lines = ["apiVersion: v1", "kind: Config", "current-context: here", "clusters:", "- name: cluster"]
        lines += ["  cluster:", f"    server: {self.url}", f"    certificate-authority: {self.pki.ca}"]
        lines += ["contexts:", "- name: here", "  context: {cluster: cluster, user: me}", "users:", "- name: me"]
        lines += ["  user:", *(f"    {key}: {value}" for key, value in user.items())]
        path.write_text("\n".join(lines) + "\n")
        return path

    def _run(self, name: str, *flags: str) -> None:
        with self._log(name).open("ab") as log:
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.directory)}
            self._processes[name] = subprocess.Popen(
                [self.directory / name, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def _end(self, name: str, number: int) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.send_signal(number)
            process.wait(10)

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _is_ready(self) -> bool:
        assert self._processes["kube-apiserver"].poll() is None, self.evidence()
        try:
            return self.ask("GET", "/readyz") == (200, "ok")
        except OSError:
            return False


class Manager:
    """A KubeSubnetManager in a process: what it has said (JSON lines of kube_driver.py), and its log."""

    def __init__(self, api: Api, directory: Path, node: str, config: Any, **more: Any) -> None:
        self.api, self.directory, self.node = api, directory, node
        directory.mkdir(exist_ok=True)
        self.net_config = directory / "net-conf.json"
        self.net_config.write_text(json.dumps(config))
        asked = {
            "options": {"kubeconfig": str(api.kubeconfig())},
            "environ": {"NODE_NAME": node},
            "attributes": {"public_ip": "192.0.2.1", "backend_type": "vxlan", "backend_data": {"VNI": 1}},
            "grace": 3.0,
            "config_every": 0.5,
            "outage": 2.0,
            **more,
        }
        asked["options"] = {"net_config_path": str(self.net_config), **asked["options"]}
        self.log_file, self.out_file = directory / "log", directory / "out"
        with self.log_file.open("ab") as log, self.out_file.open("wb") as out:
            self.process = subprocess.Popen(
                [more.get("python", sys.executable), Path(__file__).with_name("kube_driver.py"), json.dumps(asked)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                env={"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]},
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def said(self) -> list[Any]:
        """Everything it said: {"what": ..., ...}; what is not a whole line yet is left out."""
        return [json.loads(line) for line in self.out_file.read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def last(self, what: str) -> Any:
        return next((one for one in reversed(self.said) if one["what"] == what), None)

    @property
    def peers(self) -> dict[str, Any]:
        """The leases of its picture, by the node's name; those of tests that ran before are left out."""
        return dict((self.last("picture") or {"leases": {}})["leases"])

    @property
    def trouble(self) -> str:
        self.tell("trouble")
        count = len(self.said)
        until(5, lambda: len(self.said) > count or self.said[-1]["what"] == "trouble", self.evidence)
        return str(self.last("trouble")["text"])

    def tell(self, word: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": word, **more}).encode() + b"\n")
        self.process.stdin.flush()

    def wait(self, what: str, seconds: float = 10) -> Any:
        until(seconds, lambda: self.last(what) or self.process.poll() is not None, lambda: f"{what}: {self.evidence()}")
        assert self.last(what), self.evidence()
        return self.last(what)

    def evidence(self) -> str:
        return f"{self.out_file.read_text()[-3000:]}\n{self.log[-5000:]}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        if self.process.stdin is not None:
            self.process.stdin.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
