"""Reads one key of a Kubernetes secret from inside a pod, with the pod's own service account.

Standard library only: a spec must resolve where no Kubernetes client is installed.
Source: Kubernetes docs, "Accessing the Kubernetes API from a Pod".
"""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from synapse_ops.errors import ConfigError, Unreachable

_TIMEOUT_S = 10
_MAX_BYTES = 4 * 1024 * 1024  # a secret has 1 MiB at most, and base64 around it


def read_kubernetes_secret(target: str, *, api: str, account: Path) -> str:
    """Return the value at `NAMESPACE/NAME/KEY`. `account` is the directory that holds `token` and `ca.crt`.

    Raises ConfigError when the secret or its key is missing or may not be read, Unreachable when the API is silent.
    """
    namespace, name, key = target.split("/")
    token = (account / "token").read_text(encoding="ascii").strip()
    request = urllib.request.Request(  # noqa: S310 - the scheme is https, the host the pod's own
        f"{api}/api/v1/namespaces/{namespace}/secrets/{name}",
        headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
    )
    trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=trust) as reply:  # noqa: S310
            document = json.loads(reply.read(_MAX_BYTES))
            encoded = (document.get("data") or {}).get(key)
            value = base64.b64decode(encoded).decode("utf-8") if encoded else ""
    except urllib.error.HTTPError as refusal:
        raise ConfigError(
            f'could not read secret "kubernetes:{target}": the API answered {refusal.code}',
            hint=f"Does it exist, and may this pod's service account get it? "
            f"`kubectl auth can-i get secret/{name} -n {namespace}`",
        ) from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Unreachable(f'could not read secret "kubernetes:{target}": {api} answers what is no secret') from None
    except OSError as fault:
        raise Unreachable(
            f'could not read secret "kubernetes:{target}": {api} does not answer', detail=str(fault)
        ) from fault
    if not value:
        raise ConfigError(
            f'secret "kubernetes:{target}" has no key "{key}"',
            hint=f"`kubectl describe secret {name} -n {namespace}` lists the keys.",
        )
    return value
