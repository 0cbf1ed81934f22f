"""Secrets by reference: a spec says where a secret is, never what it is.

A literal secret is refused wherever it stands, also inside a URL, and never repeated in a message: what an operator
pastes into a ticket must not carry a password. A reference is not secret and is shown as it is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from synapse_ops.errors import ConfigError
from synapse_ops.redaction import remember
from synapse_ops.spec.secret_file import read_secret_file

REFERENCE_FORM = "a reference: env:NAME, file:/ABSOLUTE/PATH or kubernetes:NAMESPACE/NAME/KEY"
NOT_SHOWN = "a literal secret (not shown)"

_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KUBERNETES = re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*/[A-Za-z0-9._-]+")
_POD_TOKENS = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# What a secret looks like wherever it stands. The quantifiers are bounded: a hostile line cannot make them slow.
_LITERAL_SECRET = re.compile(
    r"[a-z][a-z0-9+.-]{0,30}://[^/\s@]{0,200}:[^\s@]{1,500}@"  # user:password@host in a URL
    r"|(?<![^\s\"'=])[^\s:/@]{1,100}:[^\s:/@]{1,200}@(?!sha256:)[a-z0-9\[]"  # the same without a scheme
    # libpq conninfo, query strings, Logstash; not a reference to the environment such as "${API_KEY}"
    r"|(?:password|passwd|pwd|secret|token|api_?key)\s{0,5}=>?\s{0,5}[\"']?(?!\$\{)[^\s&\"'>]"
    # webhooks whose path is the key
    r"|hooks\.slack\.com/(?:services|workflows|triggers)/\w|discord(?:app)?\.com/api/webhooks/\w"
    r"|api\.telegram\.org/bot\d|\.webhook\.office\.com/webhookb2/\w"
    r"|AGE-SECRET-KEY-1"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    re.IGNORECASE,
)


def holds_literal_secret(text: str) -> bool:
    """Return whether a text carries something that looks like a password, a private key or an access key."""
    return _LITERAL_SECRET.search(text) is not None


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is. `scheme` is env, file or kubernetes; `target` is the rest. Read anew at every resolve."""

    scheme: str
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.target}"

    def resolve(self) -> str:
        """Return the secret, one trailing newline removed. Raises ConfigError that names the reference.

        A file is waited for some seconds, and Kubernetes' API too: not for an event loop.
        """
        if self.scheme == "env":
            return remember(self._from_environment())
        if self.scheme == "file":
            return remember(self._from_file())
        return remember(self._from_kubernetes())

    def _from_environment(self) -> str:
        secret = os.environ.get(self.target, "")
        if not secret:
            raise ConfigError(
                f'secret "{self}" is not there: the environment variable {self.target} is not set',
                hint=f"Set {self.target} where synapse-ops runs, or point the spec at file:/PATH.",
            )
        return secret

    def _from_file(self) -> str:
        try:
            secret = read_secret_file(self.target)
        except ValueError as reason:
            raise ConfigError(
                f'could not read secret "{self}": {reason}',
                hint=f"Check it with `ls -l {self.target}`; the user that runs synapse-ops must be able to read it.",
            ) from None
        secret = secret.removesuffix("\n").removesuffix("\r")
        if not secret:
            raise ConfigError(f'secret "{self}" is empty', hint="Write the secret into the file, mode 0600.")
        return secret

    def _from_kubernetes(self) -> str:
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
        if not host or not (_POD_TOKENS / "token").exists():
            raise ConfigError(
                f'could not read secret "{self}": this is not a pod with a service account',
                hint="Outside a pod use env:NAME or file:/PATH; inside one, mount the service account token.",
            )
        from synapse_ops.spec.kubernetes_secret import read_kubernetes_secret

        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return read_kubernetes_secret(self.target, api=f"https://{host}:{port}", account=_POD_TOKENS)


def parse_secret(value: object) -> SecretRef:
    """Return the reference; raises ValueError for anything else and never repeats the value."""
    if isinstance(value, SecretRef):
        return value
    if not isinstance(value, str):
        raise ValueError(REFERENCE_FORM)
    scheme, _, target = value.partition(":")
    is_reference = (
        (scheme == "env" and _ENV.fullmatch(target) is not None)
        or (scheme == "file" and target.startswith("/") and "\x00" not in target and not holds_literal_secret(target))
        or (scheme == "kubernetes" and _KUBERNETES.fullmatch(target) is not None)
    )
    if not is_reference:
        raise ValueError(REFERENCE_FORM)
    return SecretRef(scheme, target)
