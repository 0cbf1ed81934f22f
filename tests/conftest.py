"""Fixtures of every test: real servers, made on first use (tests/servers.py)."""

pytest_plugins = ["tests.servers"]
