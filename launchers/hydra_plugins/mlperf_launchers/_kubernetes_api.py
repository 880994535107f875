"""The API server as this launcher speaks to it: the official client, its answers as plain JSON, its faults as ours."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import Unreachable
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesBackend

from mlperf_exp.errors import UserError, missing_extra

_TIMEOUT_S = (5.0, 25.0)  # to connect, to answer
_READ_S = 120.0  # a log that says nothing for so long is opened again
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
        configuration.connection_pool_maxsize = 64
        configuration.retries = False
        if not configuration.verify_ssl:
            import urllib3

            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self.host = str(configuration.host)
        api = client.ApiClient(configuration)
        self.core, self.batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self.auth, self.custom = client.AuthorizationV1Api(api), client.CustomObjectsApi(api)
        self.version_api, self.scheduling = client.VersionApi(api), client.SchedulingV1Api(api)
        self._exception: type[Any] = client.ApiException

    def ask(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The answer to a call of the client's, as JSON.

        Raises:
            Refused: the server says no.
            Unreachable: it does not answer, or cannot now.
        """
        response = self._call(call, *args, **kwargs, _preload_content=False, _request_timeout=_TIMEOUT_S)
        try:
            return json.loads(response.data)
        except ValueError as error:
            raise Unreachable(f"{self.host} answers with something else than JSON") from error

    def open_log(self, namespace: str, pod: str, container: str, since: int | None, follow: bool) -> Any:
        """A container's log as a response to read from, each line with its time."""
        more = {} if since is None else {"since_seconds": since}
        return self._call(
            self.core.read_namespaced_pod_log,
            pod,
            namespace,
            container=container,
            follow=follow,
            timestamps=True,
            **more,
            _preload_content=False,
            _request_timeout=(_TIMEOUT_S[0], _READ_S),
        )

    def _call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        import urllib3

        try:
            return call(*args, **kwargs)
        except self._exception as error:
            status = int(error.status or 0)
            if status == 0 or status == 429 or status >= 500:
                raise Unreachable(f"{self.host}: {status} {error.reason}") from None
            raise Refused(status, _message(error)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            cause = getattr(error, "reason", None) or error
            raise Unreachable(f"{self.host}: {' '.join(str(cause).split())}") from None


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


def _message(error: Any) -> str:
    """The server's own words, out of the Status object that it answers with."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    with contextlib.suppress(ValueError, AttributeError):
        body = str(json.loads(body).get("message") or body)
    return " ".join(body.split()) or str(error.reason)
