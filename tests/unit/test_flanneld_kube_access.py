from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flanneld.errors import FlanneldError, UsageError
from flanneld.kube.client import KubeClient, refusal, tls_context
from flanneld.kube.errors import GoneError, KubeError, KubeUnavailableError
from flanneld.kube.kubeconfig import Access, access, in_cluster, parse_kubeconfig
from flanneld.options import KubeOptions
from flanneld.subnet.kube import KubeSubnetManager, check_options

SOURCE = Path(__file__).resolve().parents[2] / "src"
SECRET = "s3cr3t-t0ken"
ENVIRON = {"NODE_NAME": "a"}
PYYAML = ["composer", "constructor", "error", "events", "loader", "nodes"]
PYYAML += ["parser", "reader", "resolver", "scanner", "tokens"]
"""The modules of PyYAML that reading needs."""


def kubeconfig(cluster: Any = None, user: Any = None, **top: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "two",
        "contexts": [
            {"name": "one", "context": {"cluster": "other", "user": "other"}},
            {"name": "two", "context": {"cluster": "c", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": cluster or {"server": "https://192.0.2.1:6443/prefix/"}}],
        "users": [{"name": "u", "user": {"token": SECRET} if user is None else user}],
        **top,
    }


def parsed(config: Any, path: Path = Path("/etc/k/config"), *, as_yaml: bool = True) -> Access:
    return parse_kubeconfig(yaml.safe_dump(config) if as_yaml else json.dumps(config), path)


@pytest.mark.parametrize("as_yaml", [True, False])
def test_the_current_context_decides(as_yaml: bool) -> None:
    found = parsed(kubeconfig(), as_yaml=as_yaml)
    assert found == Access("https://192.0.2.1:6443/prefix", "/etc/k/config", token=SECRET)
    assert SECRET not in f"{found!r} {found}"
    assert found.bearer() == SECRET


def test_files_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    for name in ("ca.pem", "own.pem", "own.key", "token"):
        (tmp_path / name).write_text(f"{SECRET}\n")
    cluster = {"server": "https://a", "certificate-authority": "ca.pem", "tls-server-name": "b"}
    user = {"client-certificate": "own.pem", "client-key": str(tmp_path / "own.key"), "tokenFile": "token"}
    found = parsed(kubeconfig(cluster, user), tmp_path / "config")
    assert (found.ca_file, found.cert_file) == (str(tmp_path / "ca.pem"), str(tmp_path / "own.pem"))
    assert (found.key_file, found.server_name) == (str(tmp_path / "own.key"), "b")
    assert found.bearer() == SECRET
    (tmp_path / "token").write_text("another")
    assert found.bearer() == "another"
    for content, words in (("", "is empty"), ("two words", "no token"), ("x\r\nHost: y", "no token")):
        (tmp_path / "token").write_text(content)
        with pytest.raises(KubeError, match=words):
            found.bearer()
    (tmp_path / "token").unlink()
    with pytest.raises(KubeError, match="cannot be read"):
        found.bearer()


def test_data_has_precedence_over_files(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("file")
    data = base64.b64encode(b"data").decode()
    cluster = {"server": "https://a", "certificate-authority": "ca.pem", "certificate-authority-data": data}
    found = parsed(kubeconfig(cluster), tmp_path / "config")
    assert (found.ca_file, found.ca_data) == ("", "data")


HERE = {"server": "https://a"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], "-kubeconfig-file /etc/k/config is not a kubeconfig"),
        (kubeconfig(**{"current-context": ""}), "has no current-context"),
        (kubeconfig(**{"current-context": "three"}), "has no context 'three' among its contexts"),
        (kubeconfig(**{"current-context": "one"}), "has no cluster 'other' among its clusters"),
        (kubeconfig(users=None), "has no user 'u' among its users"),
        (kubeconfig(users={}, clusters={}), "has no cluster 'c' among its clusters"),
        (kubeconfig(clusters="c"), "has clusters that are not a list"),
        (kubeconfig({"server": ""}), "the server of the cluster 'c' '' cannot be used"),
        (kubeconfig({"server": "192.0.2.1:6443"}), "cannot be used"),
        (kubeconfig({"server": f"https://me:{SECRET}@a"}), "a URL with a user name cannot be used"),
        (kubeconfig({"server": 7}), "has a server that is not a string"),
        (kubeconfig({**HERE, "proxy-url": "http://p"}), "has a proxy-url"),
        (kubeconfig({**HERE, "certificate-authority": "no.pem"}), "/etc/k/no.pem, which is no file"),
        (kubeconfig({**HERE, "certificate-authority-data": "%"}), "is not PEM in base64"),
        (kubeconfig({**HERE, "insecure-skip-tls-verify": "yes please"}), "neither true nor false"),
        (
            kubeconfig({**HERE, "insecure-skip-tls-verify": True, "certificate-authority-data": "YQ=="}),
            "both a certificate-authority and insecure",
        ),
        (kubeconfig(user={"exec": {"command": "aws"}}), "has exec, which flanneld does not support"),
        (kubeconfig(user={"auth-provider": {"name": "gcp"}}), "has auth-provider, which"),
        (kubeconfig(user={"username": "a", "password": SECRET}), "has username, which"),
        (kubeconfig(user={"as": "root", "token": SECRET}), "has as, which"),
        (kubeconfig(user={"client-certificate-data": "YQ=="}), "has no client-key"),
        (kubeconfig(user={"client-key-data": "YQ=="}), "has no client-certificate"),
        (kubeconfig(user={"token": f"{SECRET} {SECRET}"}), "has a token with blanks"),
        (kubeconfig(user={"token": 12345678}), "has a token that is not a string"),
        (kubeconfig(user="me"), "the user 'u' in -kubeconfig-file /etc/k/config is not an object"),
    ],
)
def test_what_is_wrong_is_named_without_the_secret(config: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(config)
    assert words in str(caught.value)
    assert caught.value.hint
    assert SECRET not in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [f"users: [token: {SECRET}", f"a: {SECRET}\n b: c: d", "\x00", f"&a [{SECRET}, *b]", "!!python/none x", "[" * 9999],
)
def test_what_is_neither_json_nor_yaml_is_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match="is neither JSON nor YAML") as caught:
        parse_kubeconfig(text, Path("config"))
    assert SECRET not in str(caught.value)


@given(st.text(alphabet=st.sampled_from("ab:-[]{},&*!|>'\"%@`#\n \t0129.~?"), max_size=40))
def test_no_text_is_a_traceback(text: str) -> None:
    with pytest.raises(UsageError):
        parse_kubeconfig(text, Path("config"))


def test_only_these_parts_of_pyyaml_are_needed(tmp_path: Path) -> None:
    archive, library = tmp_path / "one.zip", Path(yaml.__file__).parent
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("yaml/__init__.py", "")
        for name in PYYAML:
            made.write(library / f"{name}.py", f"yaml/{name}.py")
        for path in SOURCE.glob("flanneld/**/*.py"):
            made.write(path, path.relative_to(SOURCE))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from flanneld.kube.kubeconfig import parse_kubeconfig\n"
        "assert 'yaml' not in sys.modules\n"
        "print(parse_kubeconfig(sys.argv[2], Path('c')).server, sorted(m for m in sys.modules if m[:5] == 'yaml.'))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(archive), yaml.safe_dump(kubeconfig())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"https://192.0.2.1:6443/prefix {[f'yaml.{name}' for name in PYYAML]}\n"


def test_precedence_of_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(kubeconfig()))
    both = access("https://b:1/", str(path), {})
    assert (both.server, both.token) == ("https://b:1", SECRET)
    alone = access("http://127.0.0.1:8080/", "", {})
    assert (alone.server, alone.credentials) == ("http://127.0.0.1:8080", "")
    path.write_text("current-context: ''\n")
    assert access("https://b:1", str(path), {}).server == "https://b:1"
    with pytest.raises(UsageError, match="has no current-context"):
        access("", str(path), {})
    with pytest.raises(UsageError, match="-kubeconfig-file /no/such cannot be read"):
        access("", "/no/such", {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        access("", str(path), {})
    with pytest.raises(UsageError, match=r"KUBERNETES_SERVICE_PORT are not set.*give -kubeconfig-file"):
        access("", "", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})


def test_in_a_pod(tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(UsageError, match="serviceAccountName"):
        in_cluster(environ, tmp_path)
    (tmp_path / "token").write_text(SECRET)
    found = in_cluster(environ, tmp_path)
    assert (found.server, found.ca_file) == ("https://[fd00::1]:443", "")
    (tmp_path / "ca.crt").write_text("x")
    assert in_cluster(environ, tmp_path).ca_file == str(tmp_path / "ca.crt")
    with pytest.raises(UsageError, match="cannot be used"):
        in_cluster({**environ, "KUBERNETES_SERVICE_PORT": "many"}, tmp_path)


@pytest.mark.parametrize(
    ("options", "environ", "words"),
    [
        ({"annotation_prefix": "A"}, ENVIRON, "-kube-annotation-prefix is 'A'"),
        ({"api_url": "192.0.2.1"}, ENVIRON, "-kube-api-url '192.0.2.1' cannot be used"),
        ({"api_url": "https://api..example"}, ENVIRON, "-kube-api-url 'https://api..example' cannot be used"),
        ({"api_url": f"https://{'x' * 64}.example"}, ENVIRON, "cannot be used"),
        ({}, {}, "env variables POD_NAME and POD_NAMESPACE must be set"),
        ({}, {"POD_NAME": "p"}, "env variables POD_NAME and POD_NAMESPACE must be set"),
        ({}, {"NODE_NAME": "A/b"}, "NODE_NAME is 'A/b'"),
        ({}, {"POD_NAME": "p", "POD_NAMESPACE": ".."}, "POD_NAMESPACE is '..'"),
    ],
)
def test_flags_and_variables_that_cannot_work(options: dict[str, str], environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(KubeOptions(**options), environ)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_the_constructor_asks_nobody() -> None:
    manager = KubeSubnetManager(KubeOptions(api_url="https://192.0.2.1:6443"), ENVIRON)
    assert manager.picture is None
    manager.check()
    manager.ready()
    with pytest.raises(FlanneldError, match="failed to read net conf: /no/such"):
        KubeSubnetManager(KubeOptions(api_url="https://a", net_config_path=Path("/no/such")), ENVIRON).config_text()


BODY = json.dumps({"kind": "Status", "message": "said"}).encode()
ACCESS = Access("https://a", "config", token=SECRET)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, KubeError, "(401): said (the token of config is expired, or of another cluster)"),
        (403, KubeError, 'let flanneld watch nodes (403): said (its ClusterRole needs the rule apiGroups: [""], res'),
        (404, KubeError, "did not watch nodes (404): said"),
        (410, GoneError, "(410): said"),
        (429, KubeUnavailableError, "cannot watch nodes now (429): said"),
        (500, KubeUnavailableError, "cannot watch nodes now (500): said"),
    ],
)
def test_answers_that_say_no(status: int, kind: type[KubeError], words: str) -> None:
    made = refusal("watch", "nodes", status, BODY, ACCESS)
    assert type(made) is kind
    assert made.status == status
    assert words in str(made)
    assert SECRET not in str(made)


@given(st.integers(300, 599), st.binary(max_size=50))
def test_no_answer_is_a_traceback(status: int, body: bytes) -> None:
    assert len(str(refusal("get", "nodes", status, body, Access("http://a", "config")))) < 600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ca_data": "x"}, "certificate-authority-data of config cannot be used"),
        ({"ca_file": "/no/such"}, "/no/such cannot be used: no such file"),
        ({"cert_data": "x", "key_data": SECRET}, "the client certificate and key of config cannot be used"),
        ({"cert_file": "/no/such", "key_file": "/no/such"}, "cannot be used: no such file"),
    ],
)
def test_certificates_that_cannot_be_used(change: dict[str, str], words: str) -> None:
    with pytest.raises(KubeError) as caught:
        tls_context(ACCESS._replace(**change))  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_name_that_cannot_be_resolved() -> None:
    with pytest.raises(KubeUnavailableError, match=r"the API server's name no-such\.invalid cannot be resolved"):
        KubeClient(Access("https://no-such.invalid", "config")).node("a")
