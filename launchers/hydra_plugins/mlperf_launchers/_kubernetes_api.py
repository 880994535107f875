"""The API server as this launcher speaks to it: paths and plain JSON, its faults as ours.

The official client reads the kubeconfig, knows how to log in (tokens, certificates, plugins, a pod's account) and makes
the transport. Its generated classes stay out: they import a thousand models, a second of a processor's time, and turn
every answer into objects of which nothing is wanted.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from hydra_plugins.mlperf_launchers._cluster import Unreachable
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesBackend

from mlperf_exp.errors import UserError, missing_extra

if TYPE_CHECKING:
    import urllib3

_TIMEOUT_S = (5.0, 25.0)  # to connect, to answer
_READ_S = 120.0  # a log that says nothing for so long is opened again
_CONNECTIONS = 64  # kept open for further questions
_KEY = "hydra.launcher.backend"


class Refused(Exception):
    """The server answers, and does not do it: ``status`` is HTTP's, ``text`` the server's own words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{text} ({status})")
        self.status, self.text = status, text


class Api:
    """A connection by the user's kubeconfig, or by the account of the pod that this runs in.

    Raises:
        UserError: the client is missing, or there is no such kubeconfig or context.
    """

    def __init__(self, backend: KubernetesBackend) -> None:
        try:
            from kubernetes import client, config
        except ImportError:
            raise missing_extra("kubernetes", "hydra/launcher=kubernetes", "kubernetes") from None
        configuration = client.Configuration()
        try:
            if backend.kubeconfig is None and not _kubeconfig(backend).is_file():
                config.load_incluster_config(client_configuration=configuration)
            else:
                path = str(_kubeconfig(backend))
                config.load_kube_config(path, context=backend.context, client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise UserError(
                f"{_KEY}.kubeconfig",
                f"no way to the cluster: {error}",
                f"Give the file, or set KUBECONFIG, and see {_KEY}.context",
            ) from None
        self.host = str(configuration.host)
        self._configuration, self._pool = configuration, _transport(configuration)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str) -> Any:
        """The answer as JSON.

        Args:
            method: HTTP's; the body of a ``PATCH`` is laid over the object (RFC 7386).
            path: see :func:`core` and :func:`batch`.
            body: an object, or options of ``DELETE``.
            query: parameters under the API's own names.

        Raises:
            Refused: the server says no.
            Unreachable: it does not answer, or cannot now.
        """
        response = self._request(method, path, body, query, _TIMEOUT_S)
        try:
            return json.loads(response.data)
        except ValueError as error:
            raise Unreachable(f"{self.host} answers with something else than JSON") from error

    def open_log(self, namespace: str, pod: str, container: str, since_s: int | None, follow: bool) -> Any:
        """A container's log as a response to read from, each line with its time."""
        query = {"container": container, "follow": str(follow).lower(), "timestamps": "true"}
        if since_s is not None:
            query["sinceSeconds"] = str(since_s)
        return self._request("GET", core(namespace, "pods", pod, "log"), None, query, (_TIMEOUT_S[0], _READ_S))

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str],
        timeout_s: tuple[float, float],
    ) -> urllib3.BaseHTTPResponse:
        import urllib3

        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            response = self._pool.request(
                method,
                f"{self.host}{path}{'?' if query else ''}{urlencode(query)}",
                body=None if body is None else json.dumps(body).encode(),
                headers={"Accept": "application/json, */*", "Content-Type": kind, **self._login()},
                timeout=urllib3.Timeout(connect=timeout_s[0], read=timeout_s[1]),
                retries=False,
                preload_content=False,
            )
            if 200 <= response.status < 300:
                return response
            text = _message(response.data) or str(response.reason)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            cause = getattr(error, "reason", None) or error
            raise Unreachable(f"{self.host}: {' '.join(str(cause).split())}") from None
        if response.status == 429 or response.status >= 500:
            raise Unreachable(f"{self.host}: {response.status} {response.reason}")
        raise Refused(response.status, text)

    def _login(self) -> dict[str, str]:
        """The headers that say who asks; the client renews a token that has run out."""
        settings = self._configuration.auth_settings().values()
        return {one["key"]: one["value"] for one in settings if one["in"] == "header" and one["value"]}


def core(namespace: str, *names: str) -> str:
    """The path of a resource in a namespace, as ``core("team", "pods", "x", "log")``."""
    return _path("/api/v1", namespace, names)


def batch(namespace: str, *names: str) -> str:
    """The same for Jobs: ``batch("team", "jobs")``."""
    return _path("/apis/batch/v1", namespace, names)


def _path(group: str, namespace: str, names: tuple[str, ...]) -> str:
    return "/".join([group, "namespaces", *(quote(name, safe="") for name in (namespace, *names))])


def _transport(configuration: Any) -> urllib3.PoolManager:
    """The client's own, with its proxies; certificates are read once, and not again for each connection."""
    import urllib3
    from kubernetes.client.rest import RESTClientObject
    from urllib3.util.ssl_ import create_urllib3_context

    configuration.connection_pool_maxsize = _CONNECTIONS
    manager: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
    settings: dict[str, Any] = manager.connection_pool_kw
    context = create_urllib3_context(cert_reqs=settings["cert_reqs"])
    authorities, data = settings.pop("ca_certs", None), settings.pop("ca_cert_data", None)
    if not configuration.verify_ssl:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    elif authorities or data:
        context.load_verify_locations(authorities, cadata=data)
    else:
        context.load_default_certs()
    certificate, key = settings.pop("cert_file", None), settings.pop("key_file", None)
    if certificate:
        context.load_cert_chain(certificate, key)
    settings["ssl_context"] = context
    return manager


def namespace_of(backend: KubernetesBackend) -> str | None:
    """The namespace: the user's, the context's, that of the pod that this runs in; None where nothing says one."""
    if backend.namespace is not None:
        return backend.namespace
    path = _kubeconfig(backend)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, StopIteration):
        import yaml

        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        wanted = backend.context or document["current-context"]
        context = next(item["context"] for item in document["contexts"] if item["name"] == wanted)
        return str(context.get("namespace") or "default")
    with contextlib.suppress(OSError):
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text(encoding="utf-8").strip()
    return None


def _kubeconfig(backend: KubernetesBackend) -> Path:
    # Of several files in $KUBECONFIG, the first one: the client merges them only when it chooses the path itself.
    named = backend.kubeconfig or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named or "~/.kube/config").expanduser()


def _message(body: bytes) -> str:
    """The server's own words, out of the Status object that it answers with."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):
        text = str(json.loads(text).get("message") or text)
    return " ".join(text.split())
