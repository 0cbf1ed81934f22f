"""What cannot hold on another server is taken out of the globals before anything is executed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synapse_ops.domain.database.globals_script import (
    Statement,
    parse_globals,
    quote_name,
    split_statements,
    statements_for_missing_roles,
    statements_for_new_cluster,
    with_database_name,
)

GLOBALS = r"""
\restrict abcDEF
SET default_transaction_read_only = off;
-- Roles; a comment with 'a quote
CREATE ROLE "app; DROP";
ALTER ROLE "app; DROP" WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$4096:x;y''z';
CREATE ROLE keeper;
ALTER ROLE keeper WITH SUPERUSER LOGIN;
CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER LOGIN;
CREATE ROLE readers;
ALTER ROLE readers WITH NOSUPERUSER;
COMMENT ON ROLE readers IS 'they; read
\restrict only';
ALTER ROLE readers SET work_mem TO '8MB';
GRANT readers TO "app; DROP" WITH INHERIT TRUE GRANTED BY keeper;
CREATE TABLESPACE fast OWNER keeper LOCATION '/mnt/nvme/it''s';
GRANT ALL ON TABLESPACE fast TO readers;
\unrestrict abcDEF
"""


def test_a_semicolon_inside_quotes_does_not_end_a_statement() -> None:
    """Statements end where SQL says, so a role name or a comment cannot cut one in two."""
    statements = [statement.text for statement in split_statements(GLOBALS)]

    assert len(statements) == 14
    assert statements[1] == 'CREATE ROLE "app; DROP"'
    assert statements[9] == "COMMENT ON ROLE readers IS 'they; read\n\\restrict only'"


def test_only_the_bootstrap_role_is_not_created_again() -> None:
    """CREATE ROLE of the superuser who exists is left out beforehand; his attributes are still set."""
    chosen = statements_for_new_cluster(parse_globals(GLOBALS), "postgres")

    assert "CREATE ROLE postgres" not in chosen
    assert "ALTER ROLE postgres WITH SUPERUSER LOGIN" in chosen
    assert "CREATE ROLE keeper" in chosen


def test_a_tablespace_loses_the_directory_of_its_source_host() -> None:
    """In a throwaway a tablespace lies inside the data directory."""
    chosen = statements_for_new_cluster(parse_globals(GLOBALS), "postgres")

    assert "CREATE TABLESPACE fast OWNER keeper LOCATION ''" in chosen


def test_the_superuser_who_granted_memberships_is_the_bootstrap_role() -> None:
    """From PostgreSQL 16 on a superuser's grants are recorded as the bootstrap superuser's."""
    assert parse_globals(GLOBALS).bootstrap_role == "keeper"
    assert parse_globals(GLOBALS.replace("GRANTED BY keeper", "")).bootstrap_role == "postgres"


def test_roles_that_a_server_already_has_are_never_altered() -> None:
    """A restore beside live databases changes no password, right or setting of a role that exists."""
    script = parse_globals(GLOBALS)

    chosen = statements_for_missing_roles(script, frozenset({"postgres", "keeper", "app; DROP"}))

    assert chosen == [
        "CREATE ROLE readers",
        "ALTER ROLE readers WITH NOSUPERUSER",
        "COMMENT ON ROLE readers IS 'they; read\n\\restrict only'",
        "ALTER ROLE readers SET work_mem TO '8MB'",
        'GRANT readers TO "app; DROP" WITH INHERIT TRUE',
    ]


def test_a_database_is_renamed_only_where_the_grammar_names_it() -> None:
    """A role, a string or a comment of the same name stays."""
    statement = Statement("ALTER ROLE shop IN DATABASE shop SET search_path TO 'shop'")

    renamed = with_database_name(statement, "shop", "shop 2")

    assert renamed.text == "ALTER ROLE shop IN DATABASE \"shop 2\" SET search_path TO 'shop'"


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), max_size=5))
def test_every_role_name_survives_quoting_and_parsing(names: list[str]) -> None:
    """Parsing inverts quoting for every name, semicolons, quotes and backslashes included."""
    script = "".join(f"CREATE ROLE {quote_name(name)};\n" for name in names)

    assert parse_globals(script).roles == tuple(sorted(set(names)))


@given(st.text(max_size=200))
def test_no_script_breaks_the_parser(script: str) -> None:
    """A damaged script gives statements that a server will refuse, never a fault of ours."""
    split_statements(script)
