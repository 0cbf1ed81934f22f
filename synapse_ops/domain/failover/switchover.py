"""Whether the primary may hand over to its standby now: judged before anything is stopped. Pure."""

from __future__ import annotations

from dataclasses import dataclass

LONG_S = 10.0  # a younger transaction is ended by the stop, and its client retries


@dataclass(frozen=True, slots=True)
class LongSession:
    """What a switchover would waste: the primary is stopped, and sessions of the standby are ended.

    node: its name. what: `transaction` or `base backup`. user, application: of its session.

    The text of its statement is left out: it may hold secrets.
    """

    node: str
    what: str
    pid: int
    user: str
    application: str
    age_s: float

    def __str__(self) -> str:
        whose = f'({self.user}, "{self.application}"), {self.age_s:.0f} s old'
        return f"the {self.what} of pid {self.pid} on {self.node} {whose}"


@dataclass(frozen=True, slots=True)
class Readiness:
    """How both nodes stand. lag_bytes: WAL of the primary that the standby has not replayed; None: it has none.

    receiver: status of the standby's WAL receiver, empty when there is none. timelines: primary's and standby's.
    """

    takes_writes: bool
    follows: bool
    timelines: tuple[int, int]
    receiver: str
    lag_bytes: int | None
    long_sessions: tuple[LongSession, ...]


def plan_switchover(found: Readiness, max_lag_bytes: int, *, end_sessions: bool) -> tuple[str, ...]:
    """Return what stands against a switchover now, each with its values; empty: it may begin.

    end_sessions: a person accepts that long transactions and base backups are ended.
    """
    against = []
    if not found.takes_writes:
        against.append("the primary takes no writes")
    if not found.follows:
        against.append("the standby is not in recovery")
    elif found.receiver != "streaming":
        against.append(f'the standby does not stream: its WAL receiver is "{found.receiver or "not there"}"')
    elif found.lag_bytes is None or found.lag_bytes > max_lag_bytes:
        behind = "an unknown number of" if found.lag_bytes is None else found.lag_bytes
        against.append(f"the standby is {behind} bytes behind, limit {max_lag_bytes} (failover.max_lag_bytes)")
    if found.timelines[0] != found.timelines[1]:
        against.append(f"the last checkpoints are on timelines {found.timelines[0]} and {found.timelines[1]}")
    if found.long_sessions and not end_sessions:
        listed = "; ".join(str(one) for one in found.long_sessions)
        against.append(f"it would end {listed}: `synapse-ops switchover --end-sessions` ends them")
    return tuple(against)
