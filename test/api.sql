-- What the extension puts into a database, and who may use it.  What is listed
-- here is a promise: a change of it belongs into the release notes.

\set QUIET on
SET client_min_messages = error;

SELECT plan(27);

CREATE SCHEMA somewhere;
CREATE EXTENSION possync SCHEMA somewhere;
CREATE ROLE api_nobody;
CREATE ROLE api_owner;

CREATE TEMP VIEW members AS
SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'possync';
CREATE TEMP VIEW functions AS
SELECT p.* FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid;
CREATE TEMP VIEW relations AS
SELECT c.* FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid;

-- Functions
SELECT results_eq(
	$$SELECT proname::text COLLATE "default", pg_get_function_arguments(oid) FROM functions
	  WHERE proname ~ '^possync_' AND proname !~ '_validator$' ORDER BY proname COLLATE "C"$$,
	$$VALUES
	  ('possync_add_child', 'model text, child regclass'),
	  ('possync_add_model', 'relation regclass, server name, name text DEFAULT NULL::text, remote text DEFAULT NULL::text'),
	  ('possync_capture', ''),
	  ('possync_compare', 'model text, direction text DEFAULT NULL::text, condition text DEFAULT NULL::text'),
	  ('possync_control', 'model text, direction text DEFAULT NULL::text, condition text DEFAULT NULL::text'),
	  ('possync_create_table', 'server name, model text, fields text[] DEFAULT NULL::text[], schema name DEFAULT "current_schema"()'),
	  ('possync_discard', 'id bigint, because text'),
	  ('possync_explain', 'relation regclass, key text'),
	  ('possync_log', 'relation regclass, key name[] DEFAULT NULL::name[]'),
	  ('possync_log_change', ''),
	  ('possync_pause', 'model text DEFAULT NULL::text, direction text DEFAULT NULL::text, server name DEFAULT NULL::name'),
	  ('possync_processes', 'OUT pid integer, OUT kind text, OUT database oid, OUT role oid, OUT server oid, OUT direction text'),
	  ('possync_pull', 'model text, dry_run boolean DEFAULT false, on_error text DEFAULT ''report''::text, "full" boolean DEFAULT false, compare boolean DEFAULT false'),
	  ('possync_push', 'model text, on_error text DEFAULT ''report''::text'),
	  ('possync_queue', 'model text, operations text[] DEFAULT ''{insert,update,delete}''::text[]'),
	  ('possync_refuse_truncate', ''),
	  ('possync_remote_fields', 'server name, model text'),
	  ('possync_remote_models', 'server name'),
	  ('possync_remove_model', 'model text, forget boolean DEFAULT false'),
	  ('possync_repair', 'model text, direction text DEFAULT NULL::text, condition text DEFAULT NULL::text, dry_run boolean DEFAULT true'),
	  ('possync_reset_counters', 'model text'),
	  ('possync_resolve', 'id bigint, candidate text'),
	  ('possync_resume', 'model text DEFAULT NULL::text, direction text DEFAULT NULL::text, server name DEFAULT NULL::name'),
	  ('possync_retry', 'id bigint'),
	  ('possync_schedule', 'model text, direction text, every interval DEFAULT ''00:01:00''::interval, jitter interval DEFAULT NULL::interval'),
	  ('possync_set_field', 'model text, field name, copy boolean DEFAULT NULL::boolean, match boolean DEFAULT NULL::boolean, remote text DEFAULT NULL::text, fixed text DEFAULT NULL::text'),
	  ('possync_set_model', 'model text, name text DEFAULT NULL::text, remote text DEFAULT NULL::text, on_unknown text DEFAULT NULL::text, on_match text DEFAULT NULL::text, change_columns text[] DEFAULT NULL::text[], on_conflict text DEFAULT NULL::text, on_delete text DEFAULT NULL::text, inactive_field name DEFAULT NULL::name, inactive_value text DEFAULT NULL::text, after_create text[] DEFAULT NULL::text[]'),
	  ('possync_tree', 'model text, fields boolean DEFAULT true'),
	  ('possync_unlog', 'relation regclass'),
	  ('possync_unqueue', 'model text'),
	  ('possync_unschedule', 'model text, direction text DEFAULT NULL::text')$$,
	'functions, their arguments and defaults');
SELECT is_empty(
	$$SELECT oid::regprocedure FROM functions WHERE proname !~ '^_?possync_'$$,
	'all names begin with possync');
SELECT is_empty(
	$$SELECT oid::regprocedure FROM functions WHERE obj_description(oid, 'pg_proc') IS NULL$$,
	'every function has a comment');
SELECT is_empty(
	$$SELECT oid::regprocedure FROM functions
	  WHERE (proname ~ '^_') <> (obj_description(oid, 'pg_proc') ~ '^internal: ')$$,
	'the internal ones say so');
SELECT bag_eq(
	$$SELECT proname FROM functions WHERE prosecdef$$,
	$$VALUES ('_possync_forget'::name), ('_possync_translations'), ('_possync_waiting')$$,
	'SECURITY DEFINER is the exception');
SELECT is_empty(
	$$SELECT oid::regprocedure FROM functions
	  WHERE proconfig IS DISTINCT FROM ARRAY['search_path=pg_catalog, pg_temp']
		AND prolang <> (SELECT oid FROM pg_language WHERE lanname = 'c')$$,
	'every function has a search_path of its own');
SELECT bag_eq(
	$$SELECT proname FROM functions WHERE prolang = (SELECT oid FROM pg_language WHERE lanname = 'c')$$,
	$$VALUES ('possync_pull'::name), ('possync_postgres_validator'), ('possync_push'), ('possync_capture'),
	  ('_possync_forget_captures'), ('possync_retry'), ('possync_resolve'), ('possync_discard'), ('possync_explain'),
	  ('_possync_wake'), ('possync_compare'), ('possync_control'), ('_possync_resend'), ('possync_log_change'), ('possync_processes'), ('_possync_is_preloaded'), ('_possync_running'),
	  ('possync_tryton_validator'), ('possync_remote_models'), ('possync_remote_fields'), ('_possync_remote'), ('_possync_tells_changes'), ('_possync_calls')$$,
	'but those in C');
SELECT bag_eq(
	$$SELECT proname FROM functions WHERE NOT has_function_privilege('api_nobody', oid, 'EXECUTE')$$,
	$$VALUES ('_possync_forget'::name)$$,
	'functions run with the rights of whoever calls them, so everybody may');
SELECT is_empty(
	$$SELECT oid::regprocedure FROM functions WHERE proparallel <> 'u'$$,
	'none runs in a parallel worker');
SELECT is((SELECT format_type(prorettype, NULL) FROM functions WHERE proname = 'possync_pull'),
	'somewhere.synchronize_history', 'a pull returns its row of history');

-- Tables
SELECT results_eq(
	$$SELECT relname::text COLLATE "default", relkind::text FROM relations WHERE relkind <> 'S' ORDER BY relname COLLATE "C"$$,
	$$VALUES ('_possync_foreign_key', 'v'), ('_possync_linked', 'v'), ('possync_changes', 'v'), ('possync_counters', 'v'), ('possync_progress', 'v'), ('possync_quarantine', 'v'), ('possync_queue_depth', 'v'), ('possync_reference', 'v'),
	  ('possync_status', 'v'), ('synchronize_batch', 'r'), ('synchronize_child', 'r'), ('synchronize_counter', 'r'), ('synchronize_field', 'r'),
	  ('synchronize_held', 'r'), ('synchronize_history', 'r'), ('synchronize_log', 'r'), ('synchronize_model', 'r'),
	  ('synchronize_position', 'r'), ('synchronize_quarantine', 'r'), ('synchronize_queue', 'r'),
	  ('synchronize_schedule', 'r'), ('synchronize_translation', 'r'), ('synchronize_trimmed', 'r')$$,
	'tables and views');
SELECT is_empty($$SELECT relname FROM relations WHERE relnamespace <> 'somewhere'::regnamespace$$,
	'all in the schema that was asked for');
SELECT is_empty(
	$$SELECT relname FROM relations WHERE relkind <> 'S' AND obj_description(oid, 'pg_class') IS NULL$$,
	'every table has a comment');
SELECT bag_eq(
	$$SELECT c.relname::text || coalesce(': ' || nullif(e.condition, ''), '')
	  FROM pg_extension x, unnest(x.extconfig, x.extcondition) e (oid, condition) JOIN pg_class c ON c.oid = e.oid
	  WHERE x.extname = 'possync'$$,
	$$SELECT relname::text || CASE WHEN relname IN ('synchronize_log', 'synchronize_trimmed') THEN ': WHERE false' ELSE '' END
	  FROM relations WHERE relkind IN ('r', 'S')$$,
	'pg_dump takes every row of every table but the change log, and where sequences stand');
SELECT bag_eq(
	$$SELECT relname::text, p FROM relations,
		unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
	  WHERE relkind <> 'S' AND has_table_privilege('api_nobody', oid, p)$$,
	$$SELECT t, p FROM (VALUES
		('_possync_foreign_key', '{SELECT}'::text[]),
		('_possync_linked', '{SELECT}'),
		('possync_changes', '{SELECT}'),
		('synchronize_trimmed', '{SELECT}'),
		('possync_counters', '{SELECT}'),
		('possync_progress', '{SELECT}'),
		('possync_quarantine', '{SELECT}'),
		('possync_queue_depth', '{SELECT}'),
		('possync_reference', '{SELECT}'),
		('possync_status', '{SELECT}'),
		('synchronize_schedule', '{DELETE}'),
		('synchronize_counter', '{SELECT}'),
		('synchronize_child', '{SELECT,INSERT,UPDATE,DELETE}'),
		('synchronize_field', '{SELECT,INSERT,UPDATE,DELETE}'),
		('synchronize_model', '{SELECT,INSERT,UPDATE,DELETE}'),
		('synchronize_position', '{SELECT,DELETE}')) v (t, ps), unnest(ps) p$$,
	'what PUBLIC may do: nothing with rows left out, nor with keys of tables that one may not read');
SELECT set_eq(
	$$SELECT attname::text FROM pg_attribute WHERE attrelid = 'somewhere.synchronize_history'::regclass
	  AND attnum > 0 AND NOT has_column_privilege('api_nobody', attrelid, attnum, 'SELECT')$$,
	'{error,error_detail,error_hint,error_context}'::text[],
	'of a run PUBLIC sees all but the error, which may quote rows');
SELECT bag_eq(
	$$SELECT t.tgrelid::regclass::text, t.tgtype FROM pg_trigger t JOIN relations r ON r.oid = t.tgrelid
	  WHERE t.tgname = 'synchronize_authorize' AND t.tgenabled = 'O'$$,
	$$SELECT 'somewhere.' || relname, CASE relname WHEN 'synchronize_position' THEN 1 + 2 + 8 ELSE 1 + 2 + 4 + 8 + 16 END::smallint
	  FROM relations
	  WHERE relkind = 'r' AND (has_table_privilege('api_nobody', oid, 'INSERT') OR has_table_privilege('api_nobody', oid, 'DELETE'))$$,
	'a trigger stands before every write that PUBLIC may do');

-- That trigger, whichever way somebody comes
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres;
GRANT USAGE ON FOREIGN SERVER hq TO api_owner, api_nobody;
GRANT USAGE ON SCHEMA somewhere TO api_owner, api_nobody;
CREATE TABLE public.goods (id int PRIMARY KEY, code text NOT NULL UNIQUE);
CREATE TABLE public.own (id int PRIMARY KEY, code text NOT NULL UNIQUE);
ALTER TABLE public.own OWNER TO api_owner;
SELECT somewhere.possync_add_model('goods', server => 'hq') \g /dev/null
SET ROLE api_owner;
SELECT somewhere.possync_add_model('own', server => 'hq') \g /dev/null
SET search_path = somewhere, public;
SELECT throws_ok($$INSERT INTO synchronize_model (name, relation, server, remote, key_columns)
	VALUES ('x', 'goods', 'other', 'goods', '{id}')$$, '42501', NULL, 'a model of another''s table');
SELECT throws_ok($$INSERT INTO synchronize_model (name, relation, server, remote, key_columns)
	VALUES ('goods', 'own', 'other', 'own', '{id}') ON CONFLICT (name) DO UPDATE SET remote = 'stolen'$$, '42501', NULL,
	'another''s model by ON CONFLICT');
SELECT throws_ok($$UPDATE synchronize_model SET relation = 'goods', server = 'other' WHERE name = 'own'$$, '42501', NULL,
	'one''s own model on another''s table');
SELECT throws_ok($$UPDATE synchronize_model SET relation = 'own', server = 'other' WHERE name = 'goods'$$, '42501', NULL,
	'another''s model on one''s own table');
SELECT throws_ok($$UPDATE synchronize_field f SET model = m.id FROM synchronize_model m, synchronize_model o
	WHERE m.name = 'goods' AND o.name = 'own' AND f.model = o.id$$, '42501', NULL, 'one''s fields into another''s model');
SELECT throws_ok($$INSERT INTO synchronize_child SELECT m.id, o.id FROM synchronize_model m, synchronize_model o
	WHERE m.name = 'goods' AND o.name = 'own'$$, '42501', NULL, 'one''s model as a child of another''s');
SELECT throws_ok($$MERGE INTO synchronize_field f USING synchronize_model m ON m.id = f.model AND m.name = 'goods'
	WHEN MATCHED THEN DELETE$$, '42501', NULL, 'another''s fields by MERGE');
SELECT throws_ok($$INSERT INTO synchronize_field (model, name, remote, copy) VALUES (-1, 'x', 'x', true)$$, '42501', NULL,
	'fields of a model that is still to come');
SELECT lives_ok($$UPDATE synchronize_model SET on_match = 'keep' WHERE name = 'own'$$, 'one''s own model is one''s own');
RESET ROLE;
SELECT throws_ok($$SET ROLE api_nobody; SELECT possync_pull('own', on_error => 'raise')$$, '42704', NULL, 'who has no user mapping pulls nothing');

RESET ROLE;
RESET search_path;
SELECT * FROM finish();
DROP EXTENSION possync CASCADE;
DROP OWNED BY api_owner, api_nobody;
DROP ROLE api_owner, api_nobody;
