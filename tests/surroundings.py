"""What a shell may have set for other work: proxies, authorities, libpq's and AWS's defaults. Nothing answers there."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

NOWHERE = "http://127.0.0.1:9"  # discard: nothing listens
HOSTILE = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), NOWHERE),
    "NO_PROXY": "",
    "no_proxy": "",
    **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"), "/nowhere/ca.pem"),
    "SSL_CERT_DIR": "/nowhere",
    "AWS_PROFILE": "nobody",
    "AWS_ENDPOINT_URL": NOWHERE,
    "AWS_ENDPOINT_URL_S3": NOWHERE,
    "AWS_SESSION_TOKEN": "foreign",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "9",
    "PGUSER": "foreign",
    "PGPASSWORD": "foreign",
    "PGDATABASE": "foreign",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/nowhere/root.crt",
    "PGSERVICE": "nowhere",
    "PGOPTIONS": "-c statement_timeout=1",
    "PGTARGETSESSIONATTRS": "standby",
}

# SYNAPSE_TEST_*, QDRANT_* and POSTGRES_REGRESS are settings of the tests (docs/testing.md)
_OF_OTHER_WORK = re.compile(
    r"(?i:\w+_proxy)|SSL_CERT_(FILE|DIR)|SSLKEYLOGFILE|OPENSSL_CONF|(REQUESTS|CURL)_CA_BUNDLE|PG[A-Z]+|"
    r"(AWS|BOTO|DAGSTER|KUBERNETES)_\w+|SYNAPSE_(?!PROVE$|TEST_|SERVER_USER$)\w+|(FORCE|NO)_COLOR|COLUMNS|LINES"
)


def without_other_work(environ: MutableMapping[str, str]) -> None:
    """Remove what belongs to other work, so that it reaches neither a test nor a program that a test starts."""
    for name in [name for name in environ if _OF_OTHER_WORK.fullmatch(name)]:
        del environ[name]
    environ.update({"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull})
