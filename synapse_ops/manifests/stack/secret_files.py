"""Where a program that takes a secret from a file finds it. No secret is ever rendered, only such a path."""

from __future__ import annotations

from synapse_ops.manifests.stack.parts import PlaceName
from synapse_ops.spec.secrets import SecretRef

SECRETS_DIR = "/run/secrets"


def secret_file(reference: SecretRef, name: str, place: PlaceName) -> str:
    """Return the path: on hosts that of a `file:` reference, otherwise `/run/secrets/<name>`, which somebody fills."""
    if place == "hosts" and reference.scheme == "file":
        return reference.target
    return f"{SECRETS_DIR}/{name}"


TOKEN = "webhook-token"  # noqa: S105 - the name of a file
MAIL_PASSWORD = "mail-password"  # noqa: S105 - the same
SLACK_WEBHOOK, PAGERDUTY_KEY = "slack-webhook-url", "pagerduty-routing-key"
