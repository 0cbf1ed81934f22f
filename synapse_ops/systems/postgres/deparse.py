"""Whether two definitions that PostgreSQL printed differently mean the same.

PostgreSQL stores a parsed expression and prints it when asked. What it prints is not what it prints after reading that
text back: AND and OR are flattened, casts move onto the elements of an array, the branches of a UNION get types. A
restored copy has been read back once, its source has not, so their texts can differ although nothing was lost. The
server itself decides here: each text is made into an object of the copy, in a transaction that is rolled back, and
printed again until the text stays as it is. Two texts that end at the same one mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.structure import kind_of
from synapse_ops.systems.postgres.connection import connect, describe, postgres_errors, set_session

if TYPE_CHECKING:
    import psycopg

ROUNDS = 5  # the first round flattens and moves casts; a text that has not settled then never will
SCRATCH = "synapse_ops_scratch"
CLONE = f"pg_temp.{SCRATCH}_table"  # has the columns of a table, and no rows

# Of an expression, what stands around it in the texts of the copy.
_COLUMN_EXPRESSIONS = """
SELECT d.adrelid::regclass::text, pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = %s::regclass"""
_PUBLISHED_ROWS = """
SELECT r.prrelid::regclass::text, pg_get_expr(r.prqual, r.prrelid)
  FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
 WHERE quote_ident(p.pubname) = %s AND r.prqual IS NOT NULL"""
_CONSTRAINT = """
SELECT k.contype::text, k.conrelid::regclass::text, k.contypid::regtype::text
  FROM pg_constraint k WHERE format('%%s.%%I', CASE k.conrelid WHEN 0 THEN k.contypid::regtype::text
                                               ELSE k.conrelid::regclass::text END, k.conname) = %s"""
_INDEX = "SELECT x.indrelid::regclass::text FROM pg_index x WHERE x.indexrelid = %s::regclass"
_TRIGGER = """
SELECT g.tgrelid::regclass::text, quote_ident(g.tgname) FROM pg_trigger g
 WHERE format('%%s.%%I', g.tgrelid::regclass, g.tgname) = %s AND NOT g.tgisinternal"""
_RULE = """
SELECT r.oid::int8 FROM pg_rewrite r
 WHERE format('%%s.%%I', r.ev_class::regclass, r.rulename) = %s"""
_POLICY = """
SELECT p.polrelid::regclass::text FROM pg_policy p WHERE format('%%s.%%I', p.polrelid::regclass, p.polname) = %s"""
_STATISTICS = """
SELECT quote_ident(n.nspname) FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
 WHERE format('%%I.%%I', n.nspname, s.stxname) = %s"""


class Deparser:
    """Compares printed definitions on one connection to a restored copy, whose objects they belong to."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._statements: dict[tuple[str, str], Callable[[str, str], str]] = {
            ("view", "definition"): self._query,
            ("materialized view", "definition"): self._query,
            ("function", "definition"): self._function,
            ("procedure", "definition"): self._function,
            ("constraint", "statement"): self._constraint,
            ("index", "statement"): self._index,
            ("trigger", "statement"): self._trigger,
            ("rule", "definition"): self._rule,
            ("statistics", "statement"): self._statistics,
            ("table", "partition_key"): self._partition_key,
        }

    def is_same(self, name: str, attribute: str, expected: Any, actual: Any) -> bool:
        """Whether two values of an entry's attribute, as `domain.database.structure` has them, mean the same.

        False as well where the server does not take one of them.
        """
        import psycopg

        if not expected or not actual:
            return False
        pairs = [(expected, actual)]
        if isinstance(expected, list) and isinstance(actual, list):
            if len(expected) != len(actual):
                return False
            pairs = [(one, other) for one, other in zip(expected, actual, strict=True) if one != other]
        try:
            return all(self._is_same_text(kind_of(name), name.partition(": ")[2], attribute, *pair) for pair in pairs)
        except psycopg.OperationalError:
            raise
        except (psycopg.Error, LookupError):
            return False

    def _is_same_text(self, kind: str, name: str, attribute: str, expected: str, actual: str) -> bool:
        if printing := self._statements.get((kind, attribute)):
            return self._settle(printing, name, expected) == self._settle(printing, name, actual)
        if kind == "policy":
            return self._is_same_expression(str(self._row(_POLICY, name)[0]), expected, actual)
        if (kind, attribute) in {("domain", "default"), ("type", "default")}:
            return self._is_same_expression("", expected, actual)
        around = {"columns": _COLUMN_EXPRESSIONS, "tables": _PUBLISHED_ROWS}.get(attribute, "")
        found = self._connection.execute(around.encode(), [name]).fetchall() if around else []
        return any(self._is_same_around(str(relation), str(text), expected, actual) for relation, text in found)

    def _is_same_around(self, relation: str, expression: str, expected: str, actual: str) -> bool:
        """Compare texts that hold one expression, the copy's own being known: what stands around it must be equal."""
        start = actual.find(expression)
        while start >= 0:
            before, after = actual[:start], actual[start + len(expression) :]
            if expected.startswith(before) and expected.endswith(after):
                other = expected[len(before) : len(expected) - len(after)]
                if self._is_same_expression(relation, other, expression):
                    return True
            start = actual.find(expression, start + 1)
        return False

    def _is_same_expression(self, relation: str, expected: str, actual: str) -> bool:
        """Compare expressions over the columns of a relation, "" for none, each as the one column of a query."""
        source = f" FROM ONLY {relation}" if relation else ""
        one, other = (self._settle(self._query, "", f"SELECT ({text}) AS e{source}") for text in (expected, actual))
        return one == other

    def _settle(self, printing: Callable[[str, str], str], name: str, text: str) -> str:
        """Return the text that printing ends at; raises what the server says of a text that it does not take."""
        for _ in range(ROUNDS):
            with self._rolled_back():
                printed = printing(name, text)
            if printed == text:
                break
            text = printed
        return text

    @contextmanager
    def _rolled_back(self) -> Iterator[None]:
        self._connection.execute(f"SAVEPOINT {SCRATCH}")
        try:
            yield
        finally:
            self._connection.execute(f"ROLLBACK TO SAVEPOINT {SCRATCH}")

    def _run(self, statement: str) -> None:
        """Execute one statement. With parameters, even none, the protocol takes no second one behind a semicolon."""
        self._connection.execute(statement.replace("%", "%%").encode(), ())

    def _row(self, query: str, *values: object) -> tuple[Any, ...]:
        row = self._connection.execute(query.encode(), values).fetchone()
        if row is None:
            raise LookupError(values)
        return tuple(row)

    def _query(self, _: str, text: str) -> str:
        self._run(f"CREATE TEMP VIEW {SCRATCH} AS {text}")
        return str(self._row("SELECT pg_get_viewdef(%s::regclass)", f"pg_temp.{SCRATCH}")[0])

    def _function(self, name: str, text: str) -> str:
        self._run(text)
        return str(self._row("SELECT pg_get_functiondef(%s::regprocedure)", name)[0])

    def _constraint(self, name: str, text: str) -> str:
        kind, table, domain = self._row(_CONSTRAINT, name)
        unchecked = text.removesuffix(" NOT VALID")
        if kind == "x":  # on an empty copy of the table: its index is built at once
            self._clone(table)
            table = CLONE
        of = f"TABLE {table}" if domain == "-" else f"DOMAIN {domain}"
        self._run(f"ALTER {of} ADD CONSTRAINT {SCRATCH} {unchecked}{'' if kind == 'x' else ' NOT VALID'}")
        query = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s AND conparentid = 0 LIMIT 1"
        return str(self._row(query, SCRATCH)[0]).removesuffix(" NOT VALID") + text[len(unchecked) :]

    def _clone(self, relation: str, partitioned: str = "") -> None:
        self._run(f"CREATE TABLE {CLONE} (LIKE {relation}) {partitioned}")

    def _index(self, name: str, text: str) -> str:
        (table,) = self._row(_INDEX, name)
        self._clone(table)
        head, _, rest = text.partition(" USING ")
        unique = "UNIQUE " if head.startswith("CREATE UNIQUE ") else ""
        self._run(f"CREATE {unique}INDEX {SCRATCH} ON {CLONE} USING {rest}")
        printed = str(self._row("SELECT pg_get_indexdef(%s::regclass)", f"pg_temp.{SCRATCH}")[0])
        return f"{head} USING {printed.partition(' USING ')[2]}"

    def _partition_key(self, name: str, text: str) -> str:
        self._clone(name, f"PARTITION BY {text}")
        return str(self._row("SELECT pg_get_partkeydef(%s::regclass)", CLONE)[0])

    def _trigger(self, name: str, text: str) -> str:
        table, trigger = self._row(_TRIGGER, name)
        self._run(text.replace(f" TRIGGER {trigger} ", f" TRIGGER {SCRATCH} ", 1))
        query = "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = %s AND tgrelid = %s::regclass"
        return str(self._row(query, SCRATCH, table)[0]).replace(f" TRIGGER {SCRATCH} ", f" TRIGGER {trigger} ", 1)

    def _rule(self, name: str, text: str) -> str:
        (oid,) = self._row(_RULE, name)
        self._run(text.replace("CREATE RULE", "CREATE OR REPLACE RULE", 1))
        return str(self._row("SELECT pg_get_ruledef(%s::oid)", oid)[0])

    def _statistics(self, name: str, text: str) -> str:
        (schema,) = self._row(_STATISTICS, name)
        scratch = f"{schema}.{SCRATCH}"
        self._run(text.replace(f"CREATE STATISTICS {name} ", f"CREATE STATISTICS {scratch} ", 1))
        query = """SELECT pg_get_statisticsobjdef(s.oid) FROM pg_statistic_ext s JOIN pg_namespace n
                     ON n.oid = s.stxnamespace WHERE quote_ident(n.nspname) = %s AND s.stxname = %s"""
        printed = str(self._row(query, schema, SCRATCH)[0])
        return printed.replace(f"CREATE STATISTICS {scratch} ", f"CREATE STATISTICS {name} ", 1)


@contextmanager
def same_definitions(conninfo: str) -> Iterator[Callable[[str, str, Any, Any], bool]]:
    """Yield `Deparser.is_same` for the restored copy that `conninfo` (of a superuser) points at; nothing of it stays.

    Event triggers of the copy are off in the transaction: they would run for each scratch object.
    """
    with (
        postgres_errors(f"the definitions of {describe(conninfo)}"),
        connect(conninfo, application_name="synapse-ops definitions") as connection,
    ):
        set_session(connection, {"check_function_bodies": "off"})
        with connection.transaction(force_rollback=True):
            for (trigger,) in connection.execute("SELECT quote_ident(evtname) FROM pg_event_trigger").fetchall():
                connection.execute(f"ALTER EVENT TRIGGER {trigger} DISABLE".encode())
            yield Deparser(connection).is_same
