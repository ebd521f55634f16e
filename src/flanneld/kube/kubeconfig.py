"""How the API server is reached: a kubeconfig file, -kube-api-url alone, or what a pod is given by its cluster.

The same precedence as in Kubernetes' own clients: -kube-api-url replaces the server of the kubeconfig's current
context; with neither, flanneld must run in a pod. Tokens and keys appear in no message and no repr.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional
from urllib.parse import urlsplit

from flanneld.errors import UsageError
from flanneld.kube.errors import KubeError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token and the cluster's CA."""

_REFUSED = {
    "exec": "use a token, a tokenFile or a client certificate: flanneld runs no programs to get credentials",
    "auth-provider": "use a token, a tokenFile or a client certificate",
    "username": "API servers know no passwords since 1.19; use a token or a client certificate",
    "password": "API servers know no passwords since 1.19; use a token or a client certificate",
    "as": "give flanneld credentials of its own",
}
"""What a user of a kubeconfig may have that flanneld does not follow, and what to do instead."""


class Access(NamedTuple):
    """The API server and the credentials for it.

    `server`: a URL without a slash at its end. Of CA, certificate, key and token there is a file or the content (PEM),
    or neither; files are read again when they change. Without a CA the machine's own ones are trusted.
    `source` is what the user gave, for messages.
    """

    server: str
    source: str
    ca_file: str = ""
    ca_data: str = ""
    cert_file: str = ""
    cert_data: str = ""
    key_file: str = ""
    key_data: str = ""
    token: str = ""
    token_file: str = ""
    insecure: bool = False
    server_name: str = ""

    def __repr__(self) -> str:
        return f"Access(server={self.server!r}, source={self.source!r})"  # tokens and keys stay out of every log

    @property
    def credentials(self) -> str:
        """What flanneld identifies itself with, in words."""
        if self.token_file:
            return f"the token in {self.token_file}"
        if self.token:
            return f"the token of {self.source}"
        if self.cert_file or self.cert_data:
            return f"the client certificate of {self.source}"
        return ""

    def bearer(self) -> str:
        """Return the token as it is now, empty when there is none; raises KubeError when its file cannot be read."""
        if not self.token_file:
            return self.token
        try:
            token = Path(self.token_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise KubeError(f"the token file {self.token_file} cannot be read: {error}") from None
        if not token.isprintable() or not token.isascii() or " " in token:
            raise KubeError(f"the token file {self.token_file} holds something that is no token")
        if not token:
            raise KubeError(f"the token file {self.token_file} is empty")
        return token


def access(api_url: str, kubeconfig: str, environ: Mapping[str, str]) -> Access:
    """Return how the API server is reached; raises UsageError when that is not said or cannot be used."""
    if api_url:
        check_server(api_url, "-kube-api-url")
    if not api_url and not kubeconfig:
        return in_cluster(environ, SERVICE_ACCOUNT)
    if not kubeconfig:
        return Access(api_url.rstrip("/"), "-kube-api-url")
    try:
        text = Path(kubeconfig).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"-kubeconfig-file {kubeconfig} cannot be read: {error}", "check the path and its rights"
        ) from None
    found = parse_kubeconfig(text, Path(kubeconfig), needs_server=not api_url)
    return found._replace(server=api_url.rstrip("/")) if api_url else found


def in_cluster(environ: Mapping[str, str], directory: Path) -> Access:
    """Return the access that a pod has by its service account, whose files are in `directory`."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise UsageError(
            "-kube-subnet-mgr does not know the API server: there is no -kubeconfig-file, no -kube-api-url, and"
            " KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in pods",
            "give -kubeconfig-file",
        )
    token, ca = directory / "token", directory / "ca.crt"
    if not token.is_file():
        raise UsageError(
            f"there is no {token}, the token of the pod's service account",
            "set serviceAccountName of the pod, do not set automountServiceAccountToken to false",
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    check_server(server, "KUBERNETES_SERVICE_HOST and _PORT:")
    return Access(server, "the pod's service account", ca_file=str(ca) if ca.is_file() else "", token_file=str(token))


def check_server(url: str, what: str) -> None:
    """Raise UsageError when `url` is no URL of an API server; `what` is where it was given."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        (parts.hostname or "").encode("idna")  # as the resolver gets it: fails for "api..example" and long labels
    except ValueError:
        parts, good = urlsplit(""), False
    if not good or parts.query or parts.fragment or parts.username is not None or not url.isprintable() or " " in url:
        shown = f"{url!r}" if parts.username is None else "a URL with a user name"
        raise UsageError(f"{what} {shown} cannot be used", "a URL such as https://192.0.2.1:6443 is needed")


def parse_kubeconfig(text: str, path: Path, *, needs_server: bool = True) -> Access:
    """Return the access that the current context of a kubeconfig (JSON or YAML) describes.

    Relative file names are relative to the kubeconfig. Raises UsageError that names the entry at fault.
    """
    config = _Entry(_load(text, path), path, "")
    name = config.text("current-context")
    cluster = user = None
    if name:
        context = config.named("contexts", name, "context")
        cluster = config.named("clusters", context.text("cluster"), "cluster")
        user = config.named("users", context.text("user"), "user") if context.text("user") else None
    elif needs_server:
        raise config.wrong("has no current-context", "choose one: kubectl config use-context NAME")
    made = _of_cluster(cluster, path, needs_server=needs_server)
    return _with_user(made, user) if user else made


def _of_cluster(cluster: Optional[_Entry], path: Path, *, needs_server: bool) -> Access:
    if cluster is None:
        return Access("", str(path))
    server = cluster.text("server")
    if server or needs_server:
        check_server(server, f"{path}: the server of {cluster.where}")
    if cluster.text("proxy-url"):
        raise cluster.wrong("has a proxy-url, which flanneld does not follow", "reach the API server directly")
    made = Access(
        server.rstrip("/"),
        str(path),
        ca_file=cluster.file("certificate-authority"),
        ca_data=cluster.data("certificate-authority-data"),
        insecure=cluster.truth("insecure-skip-tls-verify"),
        server_name=cluster.text("tls-server-name"),
    )
    if made.insecure and (made.ca_file or made.ca_data):
        raise cluster.wrong(
            "has both a certificate-authority and insecure-skip-tls-verify", "remove insecure-skip-tls-verify"
        )
    return made._replace(ca_file="") if made.ca_data else made


def _with_user(made: Access, user: _Entry) -> Access:
    for key, hint in _REFUSED.items():
        if user.has(key):
            raise user.wrong(f"has {key}, which flanneld does not support", hint)
    cert_data, key_data = user.data("client-certificate-data"), user.data("client-key-data")
    cert_file, key_file = user.file("client-certificate"), user.file("client-key")
    if bool(cert_data or cert_file) != bool(key_data or key_file):
        missing = "client-key" if cert_data or cert_file else "client-certificate"
        raise user.wrong(f"has no {missing}", "a client certificate needs its key")
    token, token_file = user.text("token"), user.file("tokenFile")
    if not token.isprintable() or not token.isascii() or " " in token:
        raise user.wrong("has a token with blanks or other characters that no token has", "write it as one word")
    return made._replace(
        cert_file="" if cert_data else cert_file,
        cert_data=cert_data,
        key_file="" if key_data else key_file,
        key_data=key_data,
        token="" if token_file else token,  # as in Kubernetes' clients the file has precedence
        token_file=token_file,
    )


def _load(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    # Only the parts of PyYAML that read: its own package module imports those that write, too.
    from yaml.error import YAMLError  # noqa: PLC0415 - most kubeconfigs of flanneld are not read at all: pods have none
    from yaml.loader import SafeLoader  # noqa: PLC0415

    try:
        loader = SafeLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except YAMLError as error:
        # The error's own text quotes the line, which may be that of a key.
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UsageError(f"-kubeconfig-file {path} is neither JSON nor YAML{where}: {problem}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"-kubeconfig-file {path} is neither JSON nor YAML that can be read") from None


class _Entry:
    """An object of the kubeconfig whose values are looked at with care; `where` says which, for messages."""

    def __init__(self, raw: Any, path: Path, where: str) -> None:
        self._path = path
        self.where = where
        if not isinstance(raw, dict):
            raise self.wrong("is not an object" if where else "is not a kubeconfig", "compare it with a working one")
        self._raw = raw

    def wrong(self, what: str, hint: str) -> UsageError:
        """Return the error that says what is wrong with this entry."""
        subject = f"{self.where} in " if self.where else ""
        return UsageError(f"{subject}-kubeconfig-file {self._path} {what}", hint)

    def has(self, key: str) -> bool:
        return self._raw.get(key) not in (None, "", {})

    def text(self, key: str) -> str:
        value = self._raw.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(f"has a {key} that is not a string", "put it into quotes")
        return value

    def truth(self, key: str) -> bool:
        value = self._raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(f"has {key} that is neither true nor false", "write true or false without quotes")
        return bool(value)

    def file(self, key: str) -> str:
        name = self.text(key)
        if not name:
            return ""
        file = self._path.parent / name
        if not file.is_file():
            raise self.wrong(f"names the {key} {file}, which is no file", "check the path and its rights")
        return str(file)

    def data(self, key: str) -> str:
        try:
            return base64.b64decode(self.text(key), validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            raise self.wrong(
                f"has a {key} that is not PEM in base64", "base64 -w0 FILE prints what is needed"
            ) from None

    def named(self, kind: str, name: str, part: str) -> _Entry:
        """Return the object `part` of the entry `name` in the list `kind`."""
        entries = self._raw.get(kind) or []
        if not isinstance(entries, list):
            raise self.wrong(f"has {kind} that are not a list", "compare it with a working one")
        for entry in entries:
            if isinstance(entry, dict) and entry.get("name") == name:
                return _Entry(entry.get(part) or {}, self._path, f"the {part} {name!r}")
        raise self.wrong(f"has no {part} {name!r} among its {kind}", "look at: kubectl config view")
