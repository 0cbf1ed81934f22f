"""A database with more kinds of objects than `rich_database`, and every built-in type, for mutations of it."""

from __future__ import annotations

from tests.rich_database import CONTENT, CREATE_ROLES

ROLES = f"""{CREATE_ROLES}
CREATE ROLE rich_group NOLOGIN;
CREATE ROLE rich_super SUPERUSER;
GRANT rich_group TO rich_reader WITH ADMIN OPTION;
ALTER ROLE rich_owner LOGIN CONNECTION LIMIT 7 VALID UNTIL '2031-01-01' ;
ALTER ROLE rich_owner SET work_mem = '5MB';
ALTER ROLE ALL SET geqo_threshold = 11;
COMMENT ON ROLE rich_group IS 'all of them';
GRANT SET ON PARAMETER log_min_messages TO rich_reader;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE rich_space OWNER rich_owner LOCATION '' WITH (seq_page_cost = 2);
GRANT CREATE ON TABLESPACE rich_space TO rich_reader;
COMMENT ON TABLESPACE rich_space IS 'elsewhere';
"""

# beside rich_database.CONTENT: the rarer kinds, and one column of each type with its own way of hashing
MORE = """
DO $$ BEGIN
  EXECUTE format('ALTER DATABASE %I SET search_path = app, public', current_database());
  EXECUTE format('ALTER ROLE rich_reader IN DATABASE %I SET work_mem = ''7MB''', current_database());
  EXECUTE format('ALTER DATABASE %I OWNER TO rich_owner', current_database());
  EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 90', current_database());
  EXECUTE format('GRANT CREATE, TEMPORARY ON DATABASE %I TO rich_reader', current_database());
  EXECUTE format('COMMENT ON DATABASE %I IS ''rich''', current_database());
END $$;
SET search_path = app, public;
CREATE EXTENSION hstore SCHEMA public; CREATE EXTENSION citext SCHEMA public; CREATE EXTENSION ltree SCHEMA public;
CREATE EXTENSION btree_gist SCHEMA public;
CREATE TYPE tiny;
CREATE FUNCTION tiny_in(cstring) RETURNS tiny LANGUAGE internal STRICT IMMUTABLE AS 'int4in';
CREATE FUNCTION tiny_out(tiny) RETURNS cstring LANGUAGE internal STRICT IMMUTABLE AS 'int4out';
CREATE TYPE tiny (INPUT = tiny_in, OUTPUT = tiny_out, LIKE = int4, CATEGORY = 'N', DEFAULT = '3');
CREATE TYPE shell_only;
CREATE FUNCTION own_handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE TRUSTED LANGUAGE own_language HANDLER own_handler;
CREATE ACCESS METHOD own_heap TYPE TABLE HANDLER heap_tableam_handler;
CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal),
                                       TO SQL WITH FUNCTION int4recv(internal));
CREATE CONVERSION own_conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TEXT SEARCH PARSER own_parser (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end,
                                      LEXTYPES = prsd_lextype);
CREATE TEXT SEARCH TEMPLATE own_template (LEXIZE = dsimple_lexize, INIT = dsimple_init);
CREATE OPERATOR FAMILY loose USING btree;
ALTER OPERATOR FAMILY loose USING btree ADD OPERATOR 3 = (int4, int8), FUNCTION 1 btint48cmp(int4, int8);
CREATE FUNCTION counted(a int, VARIADIC b text[] DEFAULT '{}') RETURNS SETOF int LANGUAGE sql STABLE STRICT SECURITY
  DEFINER
  LEAKPROOF PARALLEL SAFE COST 7 ROWS 9 SET work_mem = '3MB' BEGIN ATOMIC SELECT a; END;
CREATE AGGREGATE middle(float8 ORDER BY float8) (SFUNC = ordered_set_transition, STYPE = internal,
  FINALFUNC = percentile_cont_float8_final);
CREATE AGGREGATE moving(int) (SFUNC = int4pl, STYPE = int, INITCOND = '1', MSFUNC = int4pl, MINVFUNC = int4mi, MSTYPE
  = int,
  PARALLEL = safe, COMBINEFUNC = int4pl, SORTOP = <);
CREATE DOMAIN small AS int DEFAULT 4 CONSTRAINT small_range CHECK (VALUE < 100) ;
CREATE TYPE word_span AS RANGE (subtype = text, collation = "C", multirange_type_name = word_spans);
CREATE TABLE kinds (
  id int PRIMARY KEY, a_bool bool, a_char "char", a_name name, a_int2 int2, a_int8 int8, a_float4 float4, a_float8
  float8,
  a_numeric numeric, a_scaled numeric(9,3), a_money money, a_text text, a_varchar varchar(30), a_bpchar char(9),
  a_bytea bytea,
  a_bit bit(5), a_varbit varbit, a_date date, a_time time, a_timetz timetz, a_timestamp timestamp, a_timestamptz
  timestamptz,
  a_interval interval, a_uuid uuid, a_json json, a_jsonb jsonb, a_jsonpath jsonpath, a_xml xml, a_inet inet, a_cidr
  cidr,
  a_macaddr macaddr, a_macaddr8 macaddr8, a_point point, a_line line, a_lseg lseg, a_box box, a_path path, a_polygon
  polygon,
  a_circle circle, a_tsvector tsvector, a_tsquery tsquery, a_oid oid, a_lsn pg_lsn, a_xid xid, a_snapshot pg_snapshot,
  a_ints int[], a_texts text[], a_floats float8[], a_nested int[][], a_pair pair, a_pairs pair[], a_mood mood,
  a_moods mood[],
  a_range int4range, a_numrange numrange, a_multirange nummultirange, a_span word_span, an_email email, a_small small,
  a_hstore hstore, a_citext citext, a_ltree ltree, a_tiny tiny, a_regclass regclass, a_vector int2vector);
INSERT INTO kinds SELECT n, n = 1, 'x', 'name', n, n, n / 3.0, n / 7.0, n + 0.50, n, 12.5, 'text ' || n, 'v' || n,
  'b', '\\x00ff',
  B'10101', B'1', '2026-02-03', '01:02:03', '01:02:03+02', '2026-02-03 04:05:06', '2026-02-03 04:05:06+00',
  '1 mon 2 days',
  gen_random_uuid(), '{"a": 1}', '{"a": 1.0}', '$.a', NULL, '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03',
  '08:00:2b:01:02:03:04:05', '(1,2)', '{1,2,3}', '[(1,2),(3,4)]', '((3,4),(1,2))', '[(1,2),(3,4)]', '((1,2),(3,4))',
  '<(1,2),3>',
  'a:1 b:2', 'a & b', 42, '0/16', '7', '10:20:10', '{1,2}', '{a,b}', '{1.5,NaN}', '{{1,2},{3,4}}', '(1,x)',
  '{"(1,x)"}', 'sad',
  '{sad,glad}', '[1,5)', '[1.0,5)', '{[1,2),[3,4)}', '[a,b)', 'a@b', 7, 'k=>v', 'Case', 'a.b', '5', 'app.people',
  '1 2'
  FROM generate_series(1, 3) n;
CREATE TABLE listed (k text COLLATE "C", v int) PARTITION BY LIST (k);
CREATE TABLE listed_a PARTITION OF listed FOR VALUES IN ('a', NULL);
CREATE TABLE listed_rest PARTITION OF listed DEFAULT PARTITION BY HASH (v);
CREATE TABLE listed_rest_0 PARTITION OF listed_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE listed_rest_1 PARTITION OF listed_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO listed SELECT chr(97 + n % 3), n FROM generate_series(1, 20) n;
CREATE TABLE typed OF pair (PRIMARY KEY (a));
INSERT INTO typed VALUES (1, 'one');
CREATE TABLE elsewhere (a int) TABLESPACE rich_space;
CREATE TABLE own_stored (a int) USING own_heap;
CREATE TABLE booked (room int, during tsrange, note text, EXCLUDE USING gist (room WITH =, during WITH &&)
  DEFERRABLE);
ALTER TABLE booked ADD CONSTRAINT booked_once UNIQUE NULLS NOT DISTINCT (note) INCLUDE (room) DEFERRABLE INITIALLY
  DEFERRED;
CREATE INDEX kinds_gin ON kinds USING gin (a_jsonb jsonb_path_ops) WITH (fastupdate = off);
CREATE INDEX kinds_spgist ON kinds USING spgist (a_point);
CREATE INDEX kinds_brin ON kinds USING brin (a_int8) WITH (pages_per_range = 64);
CREATE INDEX kinds_hash ON kinds USING hash (a_text);
CREATE UNIQUE INDEX kinds_partial ON kinds (lower(a_text) COLLATE "C" text_pattern_ops DESC NULLS LAST) WHERE a_bool;
CREATE INDEX elsewhere_a ON elsewhere (a) TABLESPACE rich_space;
ALTER TABLE kinds ALTER COLUMN a_text SET (n_distinct = 5);
CREATE STATISTICS kinds_expressions (ndistinct, mcv) ON (a_int2 + 1), a_int8 FROM kinds;
ALTER STATISTICS kinds_expressions SET STATISTICS 50;
CREATE VIEW changeable AS SELECT id, a_int2 FROM kinds WHERE a_int2 > 0 WITH LOCAL CHECK OPTION;
CREATE VIEW layered AS SELECT * FROM changeable;
ALTER VIEW changeable ALTER COLUMN a_int2 SET DEFAULT 5;
CREATE MATERIALIZED VIEW empty_view AS SELECT 1 AS one WITH NO DATA;
CREATE RULE insert_names AS ON INSERT TO names DO INSTEAD INSERT INTO people (name) VALUES (NEW.name);
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER noted_columns AFTER INSERT OR UPDATE OF a ON mother FOR EACH ROW EXECUTE FUNCTION noted();
CREATE TRIGGER noted_after AFTER INSERT ON mother REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION noted('an argument');
CREATE CONSTRAINT TRIGGER noted_later AFTER DELETE ON orders DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (OLD.id > 1) EXECUTE FUNCTION noted();
ALTER TABLE mother ENABLE ALWAYS TRIGGER noted_after;
CREATE EVENT TRIGGER tagged ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP INDEX') EXECUTE FUNCTION on_ddl();
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert', publish_via_partition_root = true);
CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA app WITH (publish = 'insert');
CREATE SUBSCRIPTION subscribed CONNECTION 'host=nowhere dbname=x' PUBLICATION news
  WITH (connect = false, slot_name = NONE, enabled = false);
CREATE POLICY restricted ON people AS RESTRICTIVE FOR UPDATE TO PUBLIC USING (id > 0) WITH CHECK (name <> '');
CREATE SEQUENCE descending AS smallint INCREMENT -1 MINVALUE -50 MAXVALUE -2 START -3 CYCLE OWNED BY kinds.id;
CREATE UNLOGGED SEQUENCE fleeting;
CREATE FOREIGN TABLE far_too (a int OPTIONS (column_name 'b') NOT NULL, CHECK (a > 0)) SERVER far OPTIONS
  (schema_name 's');
CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'anybody');
GRANT USAGE ON FOREIGN SERVER far TO rich_reader;
GRANT USAGE ON FOREIGN DATA WRAPPER own_wrapper TO rich_reader WITH GRANT OPTION;
GRANT USAGE ON LANGUAGE own_language TO rich_reader;
GRANT USAGE ON TYPE mood TO rich_reader; REVOKE USAGE ON TYPE pair FROM PUBLIC; REVOKE USAGE ON TYPE small FROM
  PUBLIC;
GRANT SELECT, USAGE ON SEQUENCE numbers TO rich_reader;
GRANT SELECT ON names TO rich_reader WITH GRANT OPTION;
GRANT EXECUTE ON PROCEDURE nothing() TO rich_reader;
GRANT SELECT ON pg_catalog.pg_authid TO rich_reader;
GRANT SELECT (rolname) ON pg_catalog.pg_authid TO rich_owner;
REVOKE EXECUTE ON FUNCTION hstore_hash(hstore) FROM PUBLIC;
ALTER TYPE public.ltree OWNER TO rich_owner;
ALTER DEFAULT PRIVILEGES FOR ROLE rich_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO rich_reader;
ALTER FUNCTION app.double(int) DEPENDS ON EXTENSION hstore;
COMMENT ON FUNCTION app.double(int) IS 'twice';
COMMENT ON CONSTRAINT people_state_check ON people IS 'only these';
COMMENT ON LARGE OBJECT 90001 IS 'coffee';
COMMENT ON SCHEMA public IS 'of all';
RESET search_path;
"""

SOURCE = CONTENT + MORE  # no security labels: no provider of them is at hand
