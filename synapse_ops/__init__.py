"""Backup, proof, retention and health of a small AI stack, as software-defined assets.

The layers and the direction of imports are drawn in docs/architecture.md and checked by the import contract
in pyproject.toml: definitions -> defs | cli | services | local -> operations -> systems -> domain | spec -> errors.
"""

__version__ = "0.1.0"
