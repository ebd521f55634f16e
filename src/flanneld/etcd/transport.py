"""Requests to a cluster of servers that answer alike: the first one that can be asked answers.

What is shared by all connections to a cluster is in `Cluster`; a `Transport` is one connection, and belongs to one
thread.
"""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, TypeVar

from flanneld.errors import EtcdError, EtcdUnavailableError
from flanneld.etcd.http import Connection, Response
from flanneld.etcd.tls import Failure, TlsFiles, explain, tls_for
from flanneld.metrics import FIGURES
from flanneld.options import EtcdOptions

TIMEOUT = 3.0
"""Seconds for one request to one endpoint."""

LIST_TIMEOUT = 15.0
"""Seconds for reading everything: thousands of leases, from a server that all machines ask at the same time."""

_CONNECT = 1.0  # seconds for a connection where there is another endpoint to try


_Taken = TypeVar("_Taken")


class Request(NamedTuple):
    """`op` is its name among the figures."""

    op: str
    method: str
    target: str
    headers: Mapping[str, str] = {}
    body: Optional[bytes] = None
    timeout: float = TIMEOUT


class Answer(NamedTuple):
    """What a server answered with, whatever the status."""

    endpoint: str
    status: int
    headers: Mapping[str, str]
    body: bytearray

    @property
    def first_line(self) -> str:
        """The beginning of a body that is text for people."""
        return self.body.decode(errors="replace").strip().split("\n", 1)[0][:200]


class UnfitError(EtcdError):
    """An endpoint answers what no member of etcd should: a proxy, or a gateway that is off. Another may be fit."""


def foreign(answer: Answer) -> Optional[UnfitError]:
    """Return the error of an answer that should be good, and is not even an object."""
    if answer.body[:64].lstrip()[:1] == b"{":
        return None
    return UnfitError(f"{answer.endpoint} answered something that is not etcd's", "check -etcd-endpoints")


Judge = Callable[[Answer], Optional[EtcdError]]
"""Returns the error that an answer means, None when it is a good one; EtcdUnavailableError and UnfitError: ask another
endpoint.
"""


def parsed(answer: Answer, hook: Optional[Callable[[Dict[str, Any]], Any]] = None) -> Dict[str, Any]:
    """Return the JSON object that an answer is, `hook` called for every object in it; raises EtcdError."""
    try:
        found = json.loads(answer.body, object_hook=hook)
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise EtcdError(f"{answer.endpoint} answered something that is not etcd's", "check -etcd-endpoints")
    return found


class Cluster:
    """The endpoints, their TLS, and which of them answered last: that one is asked first. Shared by threads."""

    def __init__(self, options: EtcdOptions) -> None:
        """Read the certificates; raises UsageError when they cannot be used."""
        self.options = options
        self.endpoints: Tuple[str, ...] = options.endpoints
        self.tls = tls_for(options.endpoints, TlsFiles(options.cafile, options.certfile, options.keyfile))
        self.current = 0

    def rotation(self) -> List[int]:
        """Return the numbers of all endpoints, in the order in which they are to be asked."""
        count = len(self.endpoints)
        return [(self.current + step) % count for step in range(count)]


class Transport:
    """One connection to one of the endpoints."""

    def __init__(self, cluster: Cluster, judge: Judge) -> None:
        self._cluster = cluster
        self._judge = judge
        self._connection: Optional[Connection] = None
        self._number = -1

    @property
    def endpoint(self) -> str:
        """The endpoint of the connection, for messages."""
        return self._cluster.endpoints[max(self._number, 0)]

    def call(self, request: Request) -> Answer:
        """Return the first good answer.

        Raises what one refused; when no endpoint gives an answer that is etcd's, EtcdUnavailableError or UnfitError.
        """
        return self._ask(request, self._read)

    def stream(self, request: Request) -> Response:
        """Return an answer with status 200 whose body is yet to be read; raises as `call`."""
        return self._ask(request, self._begin)

    def broken(self, error: BaseException) -> EtcdUnavailableError:
        """Close the connection after a streamed answer broke off, prefer another endpoint, return what to raise."""
        failure = self._failure(error)
        FIGURES.add("flannel_store_failures_total")
        self.avoid()
        return EtcdUnavailableError(f"{self.endpoint}: {failure.message}", failure.hint)

    def avoid(self) -> None:
        """Close the connection, and begin with another endpoint the next time."""
        self.close()
        if self._number == self._cluster.current:
            self._cluster.current = (self._number + 1) % len(self._cluster.endpoints)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, request: Request, take: Callable[[Request, Response], _Taken]) -> _Taken:
        failures: List[EtcdError] = []
        for number in self._cluster.rotation():
            if self._connection is None or number != self._number:
                self._connect(number)
            connection = self._connection
            assert connection is not None  # noqa: S101 - just made
            started = time.monotonic()
            try:
                response = connection.send(
                    request.method, request.target, request.headers, request.body, request.timeout
                )
                taken = take(request, response)
            except (EtcdUnavailableError, UnfitError) as error:
                failures.append(error)
            except OSError as error:
                failure = self._failure(error)
                failures.append(EtcdUnavailableError(f"{self.endpoint}: {failure.message}", failure.hint))
            else:
                FIGURES.observe("flannel_store_request_seconds", time.monotonic() - started, op=request.op)
                self._cluster.current = number
                return taken
            FIGURES.add("flannel_store_failures_total")
            self.close()
        if len(failures) == 1:
            raise failures[0]
        text = "; ".join(map(str, failures))
        unfit = next((error for error in failures if isinstance(error, UnfitError)), None)
        raise EtcdUnavailableError(text) if unfit is None else UnfitError(text, code=unfit.code)

    def _read(self, _request: Request, response: Response) -> Answer:
        answer = Answer(self.endpoint, response.status, response.headers, response.read())
        error = self._judge(answer)
        if error is None:
            return answer
        if not isinstance(error, (EtcdUnavailableError, UnfitError)):
            FIGURES.add("flannel_store_failures_total")
        raise error

    def _begin(self, request: Request, response: Response) -> Response:
        if response.status != 200:
            self._read(request, response)
            raise EtcdUnavailableError(f"{self.endpoint}: HTTP status {response.status}")
        return response

    def _connect(self, number: int) -> None:
        self.close()
        endpoint = self._cluster.endpoints[number]
        tls = self._cluster.tls if endpoint.startswith("https:") else None
        several = len(self._cluster.endpoints) > 1
        self._connection = Connection(endpoint, tls, _CONNECT if several else TIMEOUT)
        self._number = number

    def _failure(self, error: BaseException) -> Failure:
        return explain(error, tls=self.endpoint.startswith("https:"))
