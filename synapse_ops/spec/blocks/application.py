"""The application's own processes: `server` and `worker`."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from synapse_ops.spec.block import Block, Count, Duration, Host, Port


class Server(Block):
    """The API process: where it listens and how many workers serve it."""

    host: Host = Field("0.0.0.0", description="Address that the API listens on.")  # noqa: S104 - the reference's default
    port: Port = Field(8000, description="Port that the API listens on.")
    workers: Count = Field(4, le=1024, description="Worker processes.")
    timeout: Duration = Field(timedelta(seconds=60), description="Longest time for one request.")
    keepalive: Duration = Field(timedelta(seconds=5), description="How long an idle connection is kept open.")


class Worker(Block):
    """The background worker that takes jobs from the queue."""

    processes: Count = Field(2, le=1024, description="Worker processes.")
    threads: Count = Field(4, le=1024, description="Threads per process.")
    queue_size: Count = Field(100, le=1_000_000, description="Jobs that may wait before new ones are refused.")
    timeout: Duration = Field(timedelta(seconds=300), description="Longest time for one job.")
