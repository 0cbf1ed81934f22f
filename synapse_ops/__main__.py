"""`python -m synapse_ops`: the same as the `synapse-ops` command."""

from synapse_ops.cli.entry import main

if __name__ == "__main__":
    main()
