"""The SQL outside a database's own dump: roles and tablespaces (`pg_dumpall --globals-only`), and CREATE DATABASE.

It is taken apart here, so that what cannot hold on another server is left out *before* anything is executed. An error
that is executed and then ignored looks like every other error.
Owns the rules for three statements:
- CREATE ROLE of the bootstrap superuser, who exists already in every cluster, is left out; its ALTER ROLE stays.
- CREATE TABLESPACE names a directory of the source host. In a fresh cluster it becomes an in-place tablespace
  (LOCATION ''), so that what lies in it is restored and compared; a server that exists never gets one from us.
- A database restored under another name has its name replaced where the grammar puts it, never by text search.
Source: PostgreSQL docs, "Lexical Structure"; src/bin/pg_dump/pg_dumpall.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<string>(?:[eE]'(?:[^'\\]|\\.|'')*')|(?:(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*'))
  | (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*")
  | (?P<dollar>\$(?P<tag>[A-Za-z_\u0080-\uffff][\w]*)?\$.*?\$(?(tag)(?P=tag))\$)
  | (?P<word>[A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*)
  | (?P<end>;)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One word, quoted name or literal. `value` of a name is as the catalog holds it; of a literal, its source text."""

    kind: str  # word, quoted, string, dollar, other
    value: str
    start: int
    end: int

    @property
    def is_name(self) -> bool:
        return self.kind in {"word", "quoted"}


@dataclass(frozen=True)
class Statement:
    """One SQL statement without its semicolon, as text and as tokens."""

    text: str

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(token for token in _tokens(self.text) if token.kind not in {"space", "end"})

    def starts(self, *words: str) -> bool:
        """Say whether the statement begins with these keywords (given in lower case)."""
        head = self.tokens[: len(words)]
        return len(head) == len(words) and all(
            t.kind == "word" and t.value == w for t, w in zip(head, words, strict=True)
        )

    def name(self, index: int) -> str | None:
        """Return the name that token `index` is, or None where it is not one."""
        return self.tokens[index].value if index < len(self.tokens) and self.tokens[index].is_name else None

    def replaced(self, token: Token, new: str) -> Statement:
        """Return the statement with one token's source text replaced."""
        return Statement(self.text[: token.start] + new + self.text[token.end :])


def _tokens(text: str) -> Iterator[Token]:
    for match in _TOKEN.finditer(text):
        kind, raw = match.lastgroup or "other", match[0]
        kind = "dollar" if kind == "tag" else kind
        value = raw
        if kind == "word":
            value = raw.lower()
        elif kind == "quoted":
            value = raw[raw.index('"') + 1 : -1].replace('""', '"')
        yield Token(kind, value, match.start(), match.end())


def quote_name(name: str) -> str:
    """Return a name as a quoted SQL identifier; always quoted, because quoting is never wrong."""
    return '"' + name.replace('"', '""') + '"'


def split_statements(script: str) -> list[Statement]:
    """Return the statements of a script in order, psql's own commands (`\\connect`, `\\restrict`) left out."""
    lines = _without_psql_commands(script)
    found: list[Statement] = []
    begin: int | None = None
    for token in _tokens(lines):
        if token.kind == "end":
            if begin is not None:
                found.append(Statement(lines[begin : token.start].rstrip()))
            begin = None
        elif token.kind != "space" and begin is None:
            begin = token.start
    if begin is not None:
        found.append(Statement(lines[begin:].rstrip()))
    return found


def _without_psql_commands(script: str) -> str:
    """Blank out every backslash command that stands where a statement could begin, to the end of its line."""
    kept: list[str] = []
    position = 0
    between = True  # no statement is open
    while position < len(script):
        match = _TOKEN.match(script, position)
        if match is None:
            break
        if between and match[0] == "\\":
            end_of_line = script.find("\n", position)
            position = len(script) if end_of_line < 0 else end_of_line
            continue
        kept.append(match[0])
        position = match.end()
        if match.lastgroup == "end":
            between = True
        elif match.lastgroup != "space":
            between = False
    return "".join(kept)


@dataclass(frozen=True)
class GlobalsScript:
    """Roles and tablespaces of a source cluster."""

    statements: tuple[Statement, ...]

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Names of all roles, sorted; without the ones every cluster has (`pg_...`), which pg_dumpall leaves out."""
        return tuple(sorted(_names_after(self.statements, "create", "role")))

    @cached_property
    def superusers(self) -> tuple[str, ...]:
        """Names of the roles with SUPERUSER, sorted."""
        found = set()
        for statement in self.statements:
            name = statement.name(2)
            words = {token.value for token in statement.tokens if token.kind == "word"}
            if statement.starts("alter", "role") and name is not None and "superuser" in words:
                found.add(name)
        return tuple(sorted(found))

    @cached_property
    def tablespaces(self) -> tuple[str, ...]:
        return tuple(sorted(_names_after(self.statements, "create", "tablespace")))

    @cached_property
    def bootstrap_role(self) -> str:
        """Name of the superuser that the source cluster was made with, as far as the script shows it.

        A guess, for backups that do not record the name: a role that became a superuser after it granted memberships
        misleads it.
        From PostgreSQL 16 on, memberships granted by any superuser are recorded as granted by this role, so the
        superuser named most often as a grantor is it. Otherwise `postgres` where it is a superuser, or the first one.
        """
        grantors = [name for name in map(_grantor, self.statements) if name in self.superusers]
        if grantors:
            return max(sorted(set(grantors)), key=grantors.count)
        if "postgres" in self.superusers or not self.superusers:
            return "postgres"
        return self.superusers[0]


def parse_globals(script: str) -> GlobalsScript:
    """Return the parts of what `pg_dumpall --globals-only` wrote."""
    return GlobalsScript(tuple(split_statements(script)))


def _names_after(statements: tuple[Statement, ...], *words: str) -> set[str]:
    names = (statement.name(len(words)) for statement in statements if statement.starts(*words))
    return {name for name in names if name is not None}


def _grantor(statement: Statement) -> str | None:
    """Return the role after GRANTED BY of a membership grant, or None."""
    if not statement.starts("grant"):
        return None
    tokens = statement.tokens
    for index in range(len(tokens) - 2):
        if tokens[index].value == "granted" and tokens[index + 1].value == "by" and tokens[index + 2].is_name:
            return tokens[index + 2].value
    return None


def statements_for_new_cluster(script: GlobalsScript, bootstrap_role: str) -> list[str]:
    """Return what to execute in a fresh cluster whose superuser is `bootstrap_role`; tablespaces lie in place."""
    chosen: list[str] = []
    for statement in script.statements:
        if statement.starts("create", "role") and statement.name(2) == bootstrap_role:
            continue
        if statement.starts("create", "tablespace"):
            chosen.append(_in_place(statement).text)
        else:
            chosen.append(statement.text)
    return chosen


def _in_place(statement: Statement) -> Statement:
    for before, token in zip(statement.tokens, statement.tokens[1:], strict=False):
        if before.kind == "word" and before.value == "location" and token.kind == "string":
            return statement.replaced(token, "''")
    return statement


def statements_for_missing_roles(script: GlobalsScript, existing: frozenset[str]) -> list[str]:
    """Return what creates the roles that a server lacks, with their own settings and memberships.

    A role that exists is never altered: neither its password, nor its rights, nor its settings; it is only made a
    member of a role that we create. Tablespaces and server parameters are that server's own business.
    """
    missing = frozenset(script.roles) - existing
    chosen: list[str] = []
    for statement in script.statements:
        if _role_described(statement) in missing:
            chosen.append(statement.text)
        elif _is_membership_of(statement, missing):
            chosen.append(_without_grantor(statement).text)
    return chosen


def _role_described(statement: Statement) -> str | None:
    """Return the role that a statement creates, alters or comments on, or None."""
    if statement.starts("create", "role") or statement.starts("alter", "role"):
        return statement.name(2)
    return statement.name(3) if statement.starts("comment", "on", "role") else None


def _is_membership_of(statement: Statement, missing: frozenset[str]) -> bool:
    """Say whether this is `GRANT role TO member ...` in which either side is a role that is missing."""
    if not statement.starts("grant") or len(statement.tokens) < 4:
        return False
    role, to, member = statement.tokens[1:4]
    return role.is_name and to.value == "to" and member.is_name and bool({role.value, member.value} & missing)


def _without_grantor(statement: Statement) -> Statement:
    for token, following in zip(statement.tokens, statement.tokens[1:], strict=False):
        if token.kind == "word" and token.value == "granted" and following.value == "by":
            return Statement(statement.text[: token.start].rstrip())
    return statement


def with_database_name(statement: Statement, old: str, new: str) -> Statement:
    """Return the statement with the database `old` called `new`, where the grammar names it (`DATABASE old`)."""
    for keyword, token in zip(statement.tokens, statement.tokens[1:], strict=False):
        if keyword.kind == "word" and keyword.value == "database" and token.is_name and token.value == old:
            return statement.replaced(token, quote_name(new))
    return statement


def without_tablespace(statement: Statement) -> Statement:
    """Return CREATE DATABASE without its `TABLESPACE = name`; every other statement as it is."""
    if not statement.starts("create", "database"):
        return statement
    for first, second, third in zip(statement.tokens, statement.tokens[1:], statement.tokens[2:], strict=False):
        if first.kind == "word" and first.value == "tablespace" and second.value == "=" and third.is_name:
            return Statement((statement.text[: first.start] + statement.text[third.end :]).rstrip())
    return statement
