/* sql/possync--0.1.sql */

\echo Use "CREATE EXTENSION possync" to load this file. \quit

/*
 * Configuration and bookkeeping.  Ordinary tables: local tables are stored as
 * regclass and servers by name, so that pg_dump carries everything.  There are
 * no foreign keys between them: pg_restore -j loads the tables of an extension
 * in any order, with their constraints in place.  Triggers do their work.
 */

-- A local table with its remote counterpart.  One per table and server: its
-- id stands for (table, server) in every other table.
CREATE TABLE @extschema@.synchronize_model (
	id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL UNIQUE,
	relation regclass NOT NULL,
	server name NOT NULL,
	lane smallint NOT NULL CHECK (lane > 0),
	remote text NOT NULL,
	key_columns name[] NOT NULL
		CHECK (cardinality(key_columns) BETWEEN 1 AND 32 AND array_position(key_columns, NULL) IS NULL),
	on_unknown text NOT NULL DEFAULT 'match_create'
		CHECK (on_unknown IN ('match_create', 'match', 'create', 'ignore')),
	on_match text NOT NULL DEFAULT 'update'
		CHECK (on_match IN ('update', 'keep')),
	on_conflict text NOT NULL DEFAULT 'local_wins'
		CHECK (on_conflict IN ('local_wins', 'remote_wins', 'newest', 'ask')),
	on_delete text NOT NULL DEFAULT 'ignore'
		CHECK (on_delete IN ('ignore', 'deactivate', 'delete')),
	inactive_field name,
	inactive_value text,
	change_columns text[] CHECK (cardinality(change_columns) > 0),
	after_create text[] CHECK (cardinality(after_create) > 0),
	reason text,
	UNIQUE (relation, server),
	CHECK (on_delete <> 'deactivate' OR num_nulls(inactive_field, inactive_value) = 0)
);

COMMENT ON TABLE @extschema@.synchronize_model IS 'a local table with its remote counterpart';
COMMENT ON COLUMN @extschema@.synchronize_model.lane IS 'where in the queue its changes wait: models of one server share a lane, which no other server uses';
COMMENT ON COLUMN @extschema@.synchronize_model.remote IS 'the remote table, written as the remote would: schema.table';
COMMENT ON COLUMN @extschema@.synchronize_model.key_columns IS 'local columns that identify a row: the primary key or a unique constraint over columns that are not null';
COMMENT ON COLUMN @extschema@.synchronize_model.on_unknown IS 'what may happen to a row whose counterpart is not known: match_create, match, create or ignore';
COMMENT ON COLUMN @extschema@.synchronize_model.on_match IS 'what happens to a row found by its match fields: update it from the source, or keep it as it is';
COMMENT ON COLUMN @extschema@.synchronize_model.change_columns IS 'remote columns that tell when a row was changed; null: every row is read and compared';
COMMENT ON COLUMN @extschema@.synchronize_model.on_conflict IS 'who wins where a pull brings a row with changes that have not been pushed yet: local_wins, remote_wins, newest or ask';
COMMENT ON COLUMN @extschema@.synchronize_model.on_delete IS 'what happens to a row that was deleted at the source: ignore, deactivate or delete; one that is still referred to is kept';
COMMENT ON COLUMN @extschema@.synchronize_model.inactive_field IS 'the local column that deactivate sets';
COMMENT ON COLUMN @extschema@.synchronize_model.inactive_value IS 'to this value, in its text form';
COMMENT ON COLUMN @extschema@.synchronize_model.after_create IS 'methods called at the remote for rows that a push has created there; "confirm=confirmed|done" tells which state has to come of it';
COMMENT ON COLUMN @extschema@.synchronize_model.reason IS 'why it was proposed like this';

-- A column of a model.
CREATE TABLE @extschema@.synchronize_field (
	model smallint NOT NULL,
	name name NOT NULL,
	remote text NOT NULL,
	copy boolean NOT NULL,
	match boolean NOT NULL DEFAULT false,
	fixed text,
	reason text,
	PRIMARY KEY (model, name),
	CHECK (NOT (copy AND fixed IS NOT NULL))
);

COMMENT ON TABLE @extschema@.synchronize_field IS 'a column of a model';
COMMENT ON COLUMN @extschema@.synchronize_field.name IS 'the local column';
COMMENT ON COLUMN @extschema@.synchronize_field.remote IS 'the remote column';
COMMENT ON COLUMN @extschema@.synchronize_field.copy IS 'whether the value is transferred (a foreign key: translated); a key column that is not copied is made by its default';
COMMENT ON COLUMN @extschema@.synchronize_field.match IS 'whether it takes part in recognising a row; all match fields of a model are compared together, null equals null';
COMMENT ON COLUMN @extschema@.synchronize_field.fixed IS 'a value to store instead of the remote one, in the text form of the column''s type';
COMMENT ON COLUMN @extschema@.synchronize_field.reason IS 'why it was proposed like this';

-- Children that belong to a model and travel with it.
CREATE TABLE @extschema@.synchronize_child (
	model smallint NOT NULL,
	child smallint NOT NULL,
	reason text,
	PRIMARY KEY (model, child)
);

COMMENT ON TABLE @extschema@.synchronize_child IS 'children that belong to a model and are synchronized with it';

-- Local key <-> remote key of one row.  Integer keys stand in the bigint
-- columns; any other key, and a key of several columns, in its text form.
CREATE TABLE @extschema@.synchronize_translation (
	model smallint NOT NULL,
	decision "char" NOT NULL,
	run integer NOT NULL,
	remote_key bigint,
	local_key bigint,
	remote_key_text text,
	local_key_text text,
	gone integer,
	CHECK ((remote_key IS NULL) <> (remote_key_text IS NULL)
		   AND (local_key IS NULL) <> (local_key_text IS NULL))
);

CREATE UNIQUE INDEX synchronize_translation_remote ON @extschema@.synchronize_translation (model, remote_key) INCLUDE (local_key) WHERE remote_key IS NOT NULL;
CREATE UNIQUE INDEX synchronize_translation_local ON @extschema@.synchronize_translation (model, local_key) WHERE local_key IS NOT NULL;
CREATE UNIQUE INDEX synchronize_translation_remote_text ON @extschema@.synchronize_translation (model, remote_key_text) WHERE remote_key_text IS NOT NULL;
CREATE UNIQUE INDEX synchronize_translation_local_text ON @extschema@.synchronize_translation (model, local_key_text) WHERE local_key_text IS NOT NULL;

CREATE INDEX synchronize_translation_gone ON @extschema@.synchronize_translation (model) WHERE gone IS NOT NULL;

COMMENT ON TABLE @extschema@.synchronize_translation IS 'which remote key is which local key, one row for every row that was synchronized';
COMMENT ON COLUMN @extschema@.synchronize_translation.decision IS 'how the two were linked: m matched, c created';
COMMENT ON COLUMN @extschema@.synchronize_translation.gone IS 'the run that found the remote row deleted and the local one to be kept; null: it is there, as far as we know';
COMMENT ON COLUMN @extschema@.synchronize_translation.run IS 'the run in synchronize_history that linked them';

-- How far a model has been read.
CREATE TABLE @extschema@.synchronize_position (
	model smallint PRIMARY KEY,
	position text NOT NULL,
	source text NOT NULL,
	run integer NOT NULL,
	loaded_to text,
	compared_at timestamptz
);

COMMENT ON TABLE @extschema@.synchronize_position IS 'how far a model has been read: the source is complete up to there';
COMMENT ON COLUMN @extschema@.synchronize_position.position IS 'what the source needs to know to tell what has changed since: changed, a value of the change columns; seen, its oldest transaction running then. Empty: there is nothing to tell it by, all has been read once';
COMMENT ON COLUMN @extschema@.synchronize_position.loaded_to IS 'the last remote key of an initial load that goes on in parts; null: it is complete';
COMMENT ON COLUMN @extschema@.synchronize_position.compared_at IS 'when rows that were deleted at the source were last looked for';
COMMENT ON COLUMN @extschema@.synchronize_position.source IS 'identity of the source database the position belongs to';

-- One row for every run.
CREATE TABLE @extschema@.synchronize_history (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	model text NOT NULL,
	server name NOT NULL,
	direction text NOT NULL CHECK (direction IN ('pull', 'push')),
	status text NOT NULL CHECK (status IN ('running', 'ok', 'failed', 'interrupted', 'dry run')),
	started_at timestamptz NOT NULL,
	finished_at timestamptz,
	rows_read bigint NOT NULL DEFAULT 0,
	rows_created bigint NOT NULL DEFAULT 0,
	rows_matched bigint NOT NULL DEFAULT 0,
	rows_updated bigint NOT NULL DEFAULT 0,
	rows_deleted bigint NOT NULL DEFAULT 0,
	rows_unchanged bigint NOT NULL DEFAULT 0,
	rows_left_out bigint NOT NULL DEFAULT 0,
	bytes_received bigint NOT NULL DEFAULT 0,
	position timestamptz,
	clock_offset interval,
	models jsonb,
	error text,
	sqlstate text,
	error_detail text,
	error_hint text,
	error_context text,
	runs integer NOT NULL DEFAULT 1
);

-- The last run of a tree that was well, and the last that was not, see possync_status:
-- no other index has this order, so this one is taken, whatever statistics say.
CREATE INDEX synchronize_history_last ON @extschema@.synchronize_history (server, model, direction, (status = 'ok'), (-id));
CREATE INDEX synchronize_history_running ON @extschema@.synchronize_history (server, direction) WHERE status = 'running';

COMMENT ON TABLE @extschema@.synchronize_history IS 'one row for every run';
COMMENT ON COLUMN @extschema@.synchronize_history.runs IS 'how many scheduled runs in a row it stands for, of which none found anything';
COMMENT ON COLUMN @extschema@.synchronize_history.position IS 'by the source''s clock: everything committed there before is here';
COMMENT ON COLUMN @extschema@.synchronize_history.clock_offset IS 'how far the source''s clock was ahead of ours, give or take half a round trip';
COMMENT ON COLUMN @extschema@.synchronize_history.models IS 'counts, time in milliseconds and position of every model that took part';

-- What rows that were trimmed from history add up to.
CREATE TABLE @extschema@.synchronize_counter (
	model text NOT NULL,
	server name NOT NULL,
	direction text NOT NULL,
	since timestamptz NOT NULL,
	runs bigint NOT NULL DEFAULT 0,
	failures bigint NOT NULL DEFAULT 0,
	rows_read bigint NOT NULL DEFAULT 0,
	rows_created bigint NOT NULL DEFAULT 0,
	rows_updated bigint NOT NULL DEFAULT 0,
	rows_deleted bigint NOT NULL DEFAULT 0,
	rows_left_out bigint NOT NULL DEFAULT 0,
	bytes_received bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (model, server, direction)
);

COMMENT ON TABLE @extschema@.synchronize_counter IS 'what rows trimmed from synchronize_history add up to; the view possync_counters adds the others';
COMMENT ON COLUMN @extschema@.synchronize_counter.since IS 'runs that began before are not counted';

-- Which database of which server this is.  A copy is another one.
CREATE FUNCTION @extschema@._possync_home() RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT c.system_identifier || '/' || d.oid FROM pg_control_system() c, pg_database d WHERE d.datname = current_database() $$;
COMMENT ON FUNCTION @extschema@._possync_home() IS 'internal: identity of this database';

-- Jobs, and what they came to.
CREATE TABLE @extschema@.synchronize_schedule (
	model smallint NOT NULL,
	direction text NOT NULL CHECK (direction IN ('pull', 'push')),
	owner regrole NOT NULL,
	every interval NOT NULL CHECK (every >= '1 second'),
	jitter interval NOT NULL CHECK (jitter >= '0'),
	paused boolean NOT NULL DEFAULT false,
	home text NOT NULL DEFAULT @extschema@._possync_home(),
	next_run timestamptz NOT NULL DEFAULT now(),
	started_at timestamptz,
	succeeded_at timestamptz,
	run integer,
	failures integer NOT NULL DEFAULT 0,
	permanent boolean NOT NULL DEFAULT false,
	sqlstate text,
	error text,
	PRIMARY KEY (model, direction)
) WITH (fillfactor = 50);

COMMENT ON TABLE @extschema@.synchronize_schedule IS 'what runs by itself, how often, as whom, and how that went';
COMMENT ON COLUMN @extschema@.synchronize_schedule.owner IS 'the role as which it runs';
COMMENT ON COLUMN @extschema@.synchronize_schedule.jitter IS 'how much earlier or later chance lets it run';
COMMENT ON COLUMN @extschema@.synchronize_schedule.home IS 'the database it was set up in; in a copy of that it does not run until possync_resume';
COMMENT ON COLUMN @extschema@.synchronize_schedule.started_at IS 'since when it has been running; null: it is not';
COMMENT ON COLUMN @extschema@.synchronize_schedule.run IS 'its last run in synchronize_history';
COMMENT ON COLUMN @extschema@.synchronize_schedule.failures IS 'how often it has failed in a row';
COMMENT ON COLUMN @extschema@.synchronize_schedule.permanent IS 'whether the last failure is not of the kind that passes by itself';

-- Rows that could not be applied.  They are asked for again in every run.
CREATE TABLE @extschema@.synchronize_quarantine (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	model smallint NOT NULL,
	direction text NOT NULL DEFAULT 'pull' CHECK (direction IN ('pull', 'push')),
	remote_key text,
	local_key text,
	txid bigint,
	reason text NOT NULL CHECK (reason IN ('ambiguous', 'linked', 'unmatched', 'missing', 'dependency', 'suppressed', 'conflict', 'referenced', 'error')),
	message text NOT NULL,
	sqlstate text,
	detail text,
	candidates text[],
	row_image jsonb,
	run integer NOT NULL,
	since timestamptz NOT NULL DEFAULT now(),
	attempts integer NOT NULL DEFAULT 1,
	retry_at timestamptz,
	discarded_at timestamptz,
	discarded_by name,
	discarded_because text,
	UNIQUE (model, remote_key)
);

CREATE INDEX synchronize_quarantine_txid ON @extschema@.synchronize_quarantine (txid) WHERE txid IS NOT NULL;

COMMENT ON TABLE @extschema@.synchronize_quarantine IS 'rows that were left out, and why; every run tries them again';
COMMENT ON COLUMN @extschema@.synchronize_quarantine.candidates IS 'keys between which somebody has to choose';
COMMENT ON COLUMN @extschema@.synchronize_quarantine.retry_at IS 'a push after this time tries it again by itself; null: a pull does so every time, a conflict that it found waits for somebody';

-- Committed changes waiting to be pushed, in the order in which they are.  An
-- index more would be felt by who sells, and so would a column more in this one:
-- the lane is a part of txid, so that no push passes what waits for other servers.
CREATE TABLE @extschema@.synchronize_queue (
	txid bigint NOT NULL,
	id integer NOT NULL,
	model smallint NOT NULL,
	operation "char" NOT NULL,
	local_key bigint,
	local_key_text text,
	image json NOT NULL,
	queued_at timestamptz NOT NULL,
	before json,
	PRIMARY KEY (txid, id)
);

CREATE SEQUENCE @extschema@.synchronize_queue_txid_seq OWNED BY @extschema@.synchronize_queue.txid;

COMMENT ON TABLE @extschema@.synchronize_queue IS 'committed changes waiting to be pushed';
COMMENT ON COLUMN @extschema@.synchronize_queue.txid IS 'number of the transaction that made the change, in the order of pushing, not PostgreSQL''s; before it, above 48 bits, the lane of the model';
COMMENT ON COLUMN @extschema@.synchronize_queue.id IS 'number of the change within the transaction';
COMMENT ON COLUMN @extschema@.synchronize_queue.operation IS 'i insert, u update, d delete';
COMMENT ON COLUMN @extschema@.synchronize_queue.before IS 'the row before an update, or as the remote has it since that was decided upon; JSON null if it does not matter';
COMMENT ON COLUMN @extschema@.synchronize_queue.image IS 'the row, old one of a delete: columns by name, values in text form';

-- Batches on their way: keys that were reserved for their rows are not sure to
-- be in use at the remote.
CREATE TABLE @extschema@.synchronize_batch (
	id integer PRIMARY KEY,
	run integer NOT NULL,
	server name NOT NULL,
	last_txid bigint NOT NULL,
	made json NOT NULL,
	given_up boolean NOT NULL DEFAULT false
);

COMMENT ON TABLE @extschema@.synchronize_batch IS 'batches of a push that were begun and not confirmed; their translations are pending';
COMMENT ON COLUMN @extschema@.synchronize_batch.id IS 'the run of their translations';
COMMENT ON COLUMN @extschema@.synchronize_batch.run IS 'the push in synchronize_history';
COMMENT ON COLUMN @extschema@.synchronize_batch.last_txid IS 'the last queued transaction that it sent';
COMMENT ON COLUMN @extschema@.synchronize_batch.made IS 'local keys of the rows that got one at the remote in it, by model: integers as first and last of runs';
COMMENT ON COLUMN @extschema@.synchronize_batch.given_up IS 'only rows of discarded transactions are left: nobody knows whether they arrived, and each is sent again if another one refers to it';

-- Entries of queued transactions, whole, that wait for a person, or for one that does.
CREATE TABLE @extschema@.synchronize_held (
	txid bigint NOT NULL,
	id integer NOT NULL,
	model smallint NOT NULL,
	local_key text COLLATE "C" NOT NULL,
	quarantine bigint NOT NULL REFERENCES @extschema@.synchronize_quarantine ON DELETE CASCADE,
	since timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (txid, id)
);

CREATE INDEX synchronize_held_row ON @extschema@.synchronize_held (model, local_key);
CREATE INDEX ON @extschema@.synchronize_held (quarantine);

COMMENT ON TABLE @extschema@.synchronize_held IS 'the entries of queued transactions that could not be pushed, or that depend on one that could not';
COMMENT ON COLUMN @extschema@.synchronize_held.quarantine IS 'the entry of synchronize_quarantine that tells why';

-- Which rows of which table were written by which transaction, where this
-- database is somebody's master.
CREATE TABLE @extschema@.synchronize_log (
	xid xid8 NOT NULL,
	relation oid NOT NULL,
	keys bigint[],
	keys_text text[],
	logged_at timestamptz NOT NULL
);

CREATE INDEX synchronize_log_xid ON @extschema@.synchronize_log (xid, relation);

COMMENT ON TABLE @extschema@.synchronize_log IS 'keys of rows that transactions have written in tables that possync_log was called for';
COMMENT ON COLUMN @extschema@.synchronize_log.xid IS 'the transaction';
COMMENT ON COLUMN @extschema@.synchronize_log.keys IS 'keys that are one integer; null, as keys_text, if the table was truncated';

-- What is no longer in the log.
CREATE TABLE @extschema@.synchronize_trimmed (
	relation oid PRIMARY KEY,
	xid xid8 NOT NULL
);

COMMENT ON TABLE @extschema@.synchronize_trimmed IS 'up to which transaction entries were taken out of synchronize_log';
GRANT SELECT ON @extschema@.synchronize_trimmed TO PUBLIC;

-- For those who may read the tables.
CREATE VIEW @extschema@.possync_changes WITH (security_barrier) AS
	SELECT l.xid, l.relation, l.keys, l.keys_text, l.logged_at
	FROM @extschema@.synchronize_log l
	WHERE pg_catalog.has_table_privilege(l.relation, 'SELECT')
		AND NOT pg_catalog.row_security_active(l.relation);
COMMENT ON VIEW @extschema@.possync_changes IS 'the change log of tables that the current user may read';
GRANT SELECT ON @extschema@.possync_changes TO PUBLIC;

GRANT SELECT ON @extschema@.synchronize_model, @extschema@.synchronize_field,
	@extschema@.synchronize_child, @extschema@.synchronize_position TO PUBLIC;

-- not the errors, which may quote rows
GRANT SELECT (model, direction, owner, every, jitter, paused, home, next_run, started_at,
			  succeeded_at, run, failures, permanent, sqlstate)
	ON @extschema@.synchronize_schedule TO PUBLIC;
GRANT SELECT ON @extschema@.synchronize_counter TO PUBLIC;
GRANT SELECT (id, model, server, direction, status, started_at, finished_at,
			  rows_read, rows_created, rows_matched, rows_updated, rows_deleted, rows_unchanged,
			  rows_left_out, bytes_received, position, clock_offset, models, sqlstate, runs)
	ON @extschema@.synchronize_history TO PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_model', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_model_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_field', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_child', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_translation', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_position', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_history', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_history_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_quarantine', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_quarantine_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_queue', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_batch', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_held', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_queue_txid_seq', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_counter', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_schedule', '');
-- transactions have other numbers where a dump is restored
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_log', 'WHERE false');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.synchronize_trimmed', 'WHERE false');

/*
 * Connections.  A wrapper without handler: servers and user mappings are where
 * addresses and passwords live; there are no foreign tables.
 */
CREATE FUNCTION @extschema@.possync_postgres_validator(text[], oid) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_postgres_validator(text[], oid) IS 'checks the options of possync_postgres servers and user mappings';

CREATE FOREIGN DATA WRAPPER possync_postgres VALIDATOR @extschema@.possync_postgres_validator;
COMMENT ON FOREIGN DATA WRAPPER possync_postgres IS 'possync: a remote PostgreSQL';

CREATE FUNCTION @extschema@.possync_tryton_validator(text[], oid) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_tryton_validator(text[], oid) IS 'checks the options of possync_tryton servers and user mappings';

CREATE FOREIGN DATA WRAPPER possync_tryton VALIDATOR @extschema@.possync_tryton_validator;
COMMENT ON FOREIGN DATA WRAPPER possync_tryton IS 'possync: a Tryton server';

/*
 * _possync_remote: the name of a table's counterpart as its server understands it:
 * remote, or a proposal where that is null.  Errors: invalid_parameter_value.
 */
CREATE FUNCTION @extschema@._possync_remote(server name, relation regclass, remote text) RETURNS text
AS 'MODULE_PATHNAME', 'possync_remote_name' LANGUAGE C STABLE;
COMMENT ON FUNCTION @extschema@._possync_remote(name, regclass, text) IS 'internal: the name of a remote table, checked or proposed';

CREATE FUNCTION @extschema@._possync_tells_changes(server name) RETURNS boolean
AS 'MODULE_PATHNAME', 'possync_tells_changes' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION @extschema@._possync_tells_changes(name) IS 'internal: whether a server tells what changed without change columns';

CREATE FUNCTION @extschema@._possync_calls(server name) RETURNS boolean
AS 'MODULE_PATHNAME', 'possync_calls' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION @extschema@._possync_calls(name) IS 'internal: whether methods of a server can be called';

/*
 * possync_remote_models, possync_remote_fields
 *		What a server has, for those who may use it.
 *
 * type is the one that a local column for the field would have, null if there is
 * none; stored is false for what the server computes whenever it is read.  Errors:
 * feature_not_supported where a kind of server cannot be asked, undefined_object
 * (model), and what the server says.
 */
CREATE FUNCTION @extschema@.possync_remote_models(server name)
RETURNS TABLE (model text, title text)
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_remote_models(name) IS 'the tables or models that a server has';

CREATE FUNCTION @extschema@.possync_remote_fields(server name, model text)
RETURNS TABLE (field text, kind text, type regtype, refers_to text, key boolean, required boolean, writable boolean, stored boolean, title text)
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_remote_fields(name, text) IS 'the columns or fields of a table or model of a server';

/* --- configuration functions (model, field, child) --- */

/*
 * Rights.  To configure a table one must own it and have USAGE on its server.
 * The functions below run with the rights of their caller, so that
 * current_user tells who that is, also under SET ROLE and inside somebody's
 * SECURITY DEFINER function; a SECURITY DEFINER function here could not find
 * out.  So everybody may write to the tables, and a trigger decides about
 * every row, whichever way it is written.  A superuser passes always.
 */

/*
 * _possync_check_rights
 *		Lets those pass who may configure a table for a server.
 *
 * removing: the model is only to be removed.  A table that was dropped has no
 * owner any more, and its model serves nobody: whoever has USAGE on the server
 * may remove it, and nobody but superusers may change it.  Errors:
 * insufficient_privilege.
 */
CREATE FUNCTION @extschema@._possync_check_rights(relation regclass, server name,
												  removing boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
		RETURN;
	END IF;
	IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = relation) THEN
		IF relation IS NULL THEN
			RAISE insufficient_privilege USING MESSAGE = 'the model does not exist';
		ELSIF NOT removing THEN
			RAISE insufficient_privilege USING
				MESSAGE = 'the table of the model does not exist any more',
				HINT = 'Remove the model with possync_remove_model.';
		END IF;
	ELSIF NOT EXISTS (SELECT FROM pg_class c
					  WHERE c.oid = relation AND pg_has_role(c.relowner, 'USAGE')) THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('must be owner of table %s', relation),
			DETAIL = 'Only the owner of a table may configure how it is synchronized.';
	END IF;
	IF EXISTS (SELECT FROM pg_foreign_server s
			   WHERE s.srvname = server AND NOT has_server_privilege(s.oid, 'USAGE')) THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('permission denied for foreign server %s', server),
			HINT = format('Ask its owner for: GRANT USAGE ON FOREIGN SERVER %I TO %I;', server, current_user);
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@._possync_check_rights(regclass, name, boolean) IS 'internal: lets those pass who may configure a table for a server';

/*
 * _possync_authorize
 *		Trigger of the configuration tables: checks rights for every row.
 *
 * A superuser restores tables in any order, maybe before their models.
 */
CREATE FUNCTION @extschema@._possync_authorize()
RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
		IF TG_TABLE_NAME = 'synchronize_model' THEN
			PERFORM @extschema@._possync_check_rights(m.relation, m.server, TG_OP = 'DELETE')
			FROM (SELECT OLD.relation, OLD.server WHERE TG_OP <> 'INSERT'
				  UNION SELECT NEW.relation, NEW.server WHERE TG_OP <> 'DELETE') m;
		ELSE
			PERFORM @extschema@._possync_check_rights(m.relation, m.server)
			FROM (SELECT OLD.model WHERE TG_OP <> 'INSERT'
				  UNION SELECT NEW.model WHERE TG_OP <> 'DELETE') r
			LEFT JOIN @extschema@.synchronize_model m ON m.id = r.model;
		END IF;
		-- a job does what its owner may do: nobody sets one up for somebody else
		IF TG_TABLE_NAME = 'synchronize_schedule' AND TG_OP <> 'DELETE' THEN
			IF NEW.owner <> current_user::regrole
				AND (TG_OP = 'INSERT' OR (OLD.model, OLD.direction, OLD.owner, OLD.every, OLD.jitter)
										 <> (NEW.model, NEW.direction, NEW.owner, NEW.every, NEW.jitter)) THEN
				RAISE insufficient_privilege USING
					MESSAGE = format('a job of role %s can only be set up by that role', NEW.owner);
			END IF;
		END IF;
	END IF;
	RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
COMMENT ON FUNCTION @extschema@._possync_authorize() IS 'internal: checks rights for every row of the configuration';

CREATE TRIGGER synchronize_authorize BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.synchronize_model
	FOR EACH ROW EXECUTE FUNCTION @extschema@._possync_authorize();
CREATE TRIGGER synchronize_authorize BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.synchronize_field
	FOR EACH ROW EXECUTE FUNCTION @extschema@._possync_authorize();
CREATE TRIGGER synchronize_authorize BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.synchronize_child
	FOR EACH ROW EXECUTE FUNCTION @extschema@._possync_authorize();
CREATE TRIGGER synchronize_authorize BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.synchronize_schedule
	FOR EACH ROW EXECUTE FUNCTION @extschema@._possync_authorize();
CREATE TRIGGER synchronize_authorize BEFORE DELETE ON @extschema@.synchronize_position
	FOR EACH ROW EXECUTE FUNCTION @extschema@._possync_authorize();

GRANT DELETE, INSERT (model, direction, owner, every, jitter, paused), UPDATE (owner, every, jitter, paused, home, next_run)
	ON @extschema@.synchronize_schedule TO PUBLIC;
GRANT INSERT, UPDATE, DELETE ON @extschema@.synchronize_model, @extschema@.synchronize_field,
	@extschema@.synchronize_child TO PUBLIC;
GRANT DELETE ON @extschema@.synchronize_position TO PUBLIC;

/*
 * _possync_lane
 *		Trigger: gives a model the lane of its server.
 *
 * The lane of a server's first model is that one's number, which no model gets
 * again.  It stays when a server is renamed, with all of its models.  A single one
 * cannot join another server: what waits would be left behind, and what its rows
 * are known as there would be wrong, too.  Errors: feature_not_supported.
 */
CREATE FUNCTION @extschema@._possync_lane()
RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	others smallint := (SELECT m.lane FROM @extschema@.synchronize_model m
						WHERE m.server = NEW.server AND m.id <> NEW.id ORDER BY m.id LIMIT 1);
BEGIN
	IF TG_OP = 'INSERT' THEN
		NEW.lane := coalesce(NEW.lane, others, NEW.id);
	ELSIF NEW.lane <> OLD.lane OR others <> OLD.lane THEN
		RAISE feature_not_supported USING
			MESSAGE = format('model "%s" cannot be given to another server', OLD.name),
			HINT = 'Remove it with possync_remove_model and add its table to that server.';
	END IF;
	RETURN NEW;
END $$;
COMMENT ON FUNCTION @extschema@._possync_lane() IS 'internal: gives a model the lane of its server';

CREATE TRIGGER synchronize_lane BEFORE INSERT OR UPDATE OF lane, server ON @extschema@.synchronize_model
	FOR EACH ROW EXECUTE FUNCTION @extschema@._possync_lane();

/*
 * _possync_forget
 *		Trigger: everything that is kept about a model goes with it.
 *
 * Does the work of foreign keys.  SECURITY DEFINER since nobody else may touch
 * translations; who may delete the model was decided by _possync_authorize.
 */
CREATE FUNCTION @extschema@._possync_forget()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	DELETE FROM @extschema@.synchronize_field WHERE model = OLD.id;
	DELETE FROM @extschema@.synchronize_child WHERE OLD.id IN (model, child);
	DELETE FROM @extschema@.synchronize_translation WHERE model = OLD.id;
	DELETE FROM @extschema@.synchronize_position WHERE model = OLD.id;
	DELETE FROM @extschema@.synchronize_quarantine WHERE model = OLD.id;
	DELETE FROM @extschema@.synchronize_queue WHERE model = OLD.id;
	DELETE FROM @extschema@.synchronize_schedule WHERE model = OLD.id;
	RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION @extschema@._possync_forget() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._possync_forget() IS 'internal: deletes what is kept about a model that is removed';

CREATE TRIGGER synchronize_forget AFTER DELETE ON @extschema@.synchronize_model
	FOR EACH ROW EXECUTE FUNCTION @extschema@._possync_forget();

/*
 * _possync_translations
 *		How many rows of a model are translated.
 *
 * SECURITY DEFINER: tells a number, never a key.
 */
CREATE FUNCTION @extschema@._possync_translations(model smallint)
RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT count(*) FROM @extschema@.synchronize_translation t
	WHERE t.model = _possync_translations.model
$$;
COMMENT ON FUNCTION @extschema@._possync_translations(smallint) IS 'internal: how many rows of a model are translated';

/*
 * _possync_waiting
 *		How many changes of a model's rows wait to be pushed.
 *
 * SECURITY DEFINER: tells a number, never a key.
 */
CREATE FUNCTION @extschema@._possync_waiting(model smallint)
RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT count(*) FROM @extschema@.synchronize_queue q
	WHERE q.model = _possync_waiting.model
$$;
COMMENT ON FUNCTION @extschema@._possync_waiting(smallint) IS 'internal: how many changes of rows of a model wait to be pushed';

/*
 * _possync_linked
 *		Which local row is linked with which remote one, for those who may read
 *		the table, all of it; without what a push has not heard of yet.  The
 *		cast keeps "model = constant" from spreading to the configuration: two
 *		rows would be joined by a loop, which runs in one process only.
 */
CREATE VIEW @extschema@._possync_linked WITH (security_barrier) AS
SELECT t.* FROM @extschema@.synchronize_translation t
WHERE EXISTS (SELECT FROM @extschema@.synchronize_model m
			  WHERE m.id::integer = t.model::integer
				AND pg_catalog.has_table_privilege(m.relation, 'SELECT')
				AND NOT pg_catalog.row_security_active(m.relation))
  AND NOT EXISTS (SELECT FROM @extschema@.synchronize_batch b WHERE b.id = t.run);
COMMENT ON VIEW @extschema@._possync_linked IS 'internal: links between rows of tables that the current user may read';
GRANT SELECT ON @extschema@._possync_linked TO PUBLIC;

/*
 * What the catalog says about tables.
 */

/*
 * _possync_foreign_key: foreign keys between tables, one row each whatever
 * the number of partitions.  A partition stands for its partitioned table
 * where it is referred to; a foreign key of a single partition says nothing
 * about the rows of the others and is left out.
 */
CREATE VIEW @extschema@._possync_foreign_key AS
SELECT c.conname AS name,
	   c.conrelid::regclass AS relation,
	   l.columns,
	   l.first_column,
	   l.not_null,
	   coalesce(pg_catalog.pg_partition_root(c.confrelid), c.confrelid)::regclass AS referenced,
	   c.confdeltype = 'c' AS cascades
FROM pg_catalog.pg_constraint c
JOIN pg_catalog.pg_class r ON r.oid = c.conrelid
CROSS JOIN LATERAL (
	SELECT pg_catalog.array_agg(a.attname ORDER BY k.n) AS columns,
		   pg_catalog.min(a.attnum) AS first_column,
		   pg_catalog.bool_and(a.attnotnull) AS not_null
	FROM pg_catalog.unnest(c.conkey) WITH ORDINALITY k (attnum, n)
	JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum) l
WHERE c.contype = 'f' AND c.conparentid = 0
  AND NOT r.relispartition AND r.relpersistence <> 't';
COMMENT ON VIEW @extschema@._possync_foreign_key IS 'internal: foreign keys, partitions not counted';
GRANT SELECT ON @extschema@._possync_foreign_key TO PUBLIC;

/*
 * possync_reference: which model refers to which, and by which columns.  A
 * foreign key none of whose columns is copied needs no translation and is not
 * listed.
 */
CREATE VIEW @extschema@.possync_reference AS
SELECT m.id AS model_id,
	   m.name AS model,
	   f.columns,
	   r.id AS referenced_id,
	   r.name AS referenced,
	   f.first_column,
	   pg_catalog.array_agg(f.name ORDER BY f.name) AS constraints
FROM @extschema@.synchronize_model m
JOIN @extschema@._possync_foreign_key f ON f.relation = m.relation
JOIN @extschema@.synchronize_model r ON r.relation = f.referenced AND r.server = m.server
WHERE EXISTS (SELECT FROM @extschema@.synchronize_field s
			  WHERE s.model = m.id AND s.name = ANY (f.columns) AND s.copy)
GROUP BY m.id, f.columns, f.first_column, r.id;
COMMENT ON VIEW @extschema@.possync_reference IS 'which model refers to which, and by which columns';
GRANT SELECT ON @extschema@.possync_reference TO PUBLIC;

/*
 * _possync_not_null
 *		Whether a column is known to have no nulls.  Since PostgreSQL 18 one that
 *		takes none may have some from before (NOT NULL ... NOT VALID).
 */
CREATE FUNCTION @extschema@._possync_not_null(a pg_catalog.pg_attribute)
RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT a.attnotnull AND NOT EXISTS (
		SELECT FROM pg_constraint n
		WHERE n.conrelid = a.attrelid AND n.contype = 'n' AND n.conkey[1] = a.attnum
		  AND NOT n.convalidated)
$$;
COMMENT ON FUNCTION @extschema@._possync_not_null(pg_catalog.pg_attribute) IS 'internal: whether a column is known to have no nulls';

/*
 * _possync_unique
 *		The unique constraints and indexes of a table by which a row may be
 *		found: no expressions, no condition, not deferrable, valid.
 *
 * decisive: no two rows can agree in all columns, null counted as a value.
 */
CREATE FUNCTION @extschema@._possync_unique(relation regclass)
RETURNS TABLE (name name, columns name[], is_primary boolean, is_constraint boolean,
			   not_null boolean, decisive boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT c.relname, k.columns, i.indisprimary,
		   EXISTS (SELECT FROM pg_constraint con
				   WHERE con.conindid = i.indexrelid AND con.contype IN ('p', 'u')),
		   k.not_null, k.not_null OR i.indnullsnotdistinct
	FROM pg_index i
	JOIN pg_class c ON c.oid = i.indexrelid
	CROSS JOIN LATERAL (
		SELECT array_agg(a.attname ORDER BY u.n) AS columns,
			   bool_and(@extschema@._possync_not_null(a)) AS not_null
		FROM unnest(i.indkey) WITH ORDINALITY u (attnum, n)
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
		WHERE u.n <= i.indnkeyatts) k
	WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid
	  AND NOT i.indisexclusion AND i.indpred IS NULL AND i.indexprs IS NULL
$$;
COMMENT ON FUNCTION @extschema@._possync_unique(regclass) IS 'internal: unique constraints and indexes by which a row may be found';

/*
 * _possync_key
 *		The columns that identify a row: the primary key, else the unique
 *		constraint over the fewest columns that are not null; null if there is
 *		none.
 */
CREATE FUNCTION @extschema@._possync_key(relation regclass)
RETURNS name[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT u.columns FROM @extschema@._possync_unique($1) u
	WHERE u.not_null
	ORDER BY u.is_primary DESC, cardinality(u.columns), u.is_constraint DESC, u.name
	LIMIT 1
$$;
COMMENT ON FUNCTION @extschema@._possync_key(regclass) IS 'internal: the columns that identify a row of a table';

/*
 * _possync_columns
 *		The columns of a table and how each is proposed to be synchronized.
 *
 * A key column is made here if it numbers rows: an identity column, one whose
 * default draws from a sequence, or an integer whose default is not a
 * constant.  Any other key means the same on both sides and is copied.
 */
CREATE FUNCTION @extschema@._possync_columns(relation regclass, key name[])
RETURNS TABLE (name name, attnum smallint, type oid, not_null boolean, has_default boolean,
			   copy boolean, foreign_key boolean, required boolean, reason text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	WITH fk AS MATERIALIZED (
		SELECT f.name, f.columns FROM @extschema@._possync_foreign_key f WHERE f.relation = $1)
	SELECT c.name, c.attnum, c.type, c.not_null, c.has_default,
		   NOT (c.generated OR c.identity OR (c.in_key AND c.numbered)) OR (c.fk IS NOT NULL AND NOT c.generated),
		   c.fk IS NOT NULL,
		   c.attnotnull AND NOT c.has_default AND NOT c.generated AND NOT c.identity,
		   CASE WHEN c.generated THEN 'generated column'
				WHEN c.fk IS NOT NULL AND c.in_key THEN 'part of the key, foreign key ' || c.fk
				WHEN c.fk IS NOT NULL THEN 'foreign key ' || c.fk
				WHEN c.in_key AND (c.identity OR c.numbered) THEN 'key, made here'
				WHEN c.in_key AND c.type = 'uuid'::regtype THEN 'key, unique everywhere'
				WHEN c.in_key THEN 'key, the same on both sides'
				WHEN c.identity THEN 'identity column, made here'
		   END
	FROM (
		SELECT a.attname AS name, a.attnum, a.attnotnull,
			   @extschema@._possync_not_null(a) AS not_null,
			   CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END AS type,
			   a.attgenerated <> '' AS generated,
			   a.attidentity <> '' AS identity,
			   a.attname = ANY ($2) AS in_key,
			   d.oid IS NOT NULL OR t.typdefault IS NOT NULL AS has_default,
			   coalesce(EXISTS (SELECT FROM pg_depend p JOIN pg_class s ON s.oid = p.refobjid
								WHERE p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
								  AND p.refclassid = 'pg_class'::regclass AND s.relkind = 'S')
						OR CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
						   IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
						   AND pg_get_expr(d.adbin, d.adrelid) !~ '^''?\(?-?[0-9]+\)?''?(::[a-z]+)?$',
						false) AS numbered,
			   (SELECT string_agg(fk.name, ', ' ORDER BY fk.name) FROM fk
				WHERE a.attname = ANY (fk.columns)) AS fk
		FROM pg_attribute a
		JOIN pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped) c
	ORDER BY c.attnum
$$;
COMMENT ON FUNCTION @extschema@._possync_columns(regclass, name[]) IS 'internal: the columns of a table and how each is proposed to be synchronized';

/*
 * _possync_propose_match
 *		Columns by which a row of a new model is recognised, and why; columns
 *		is null where nothing is certain enough.
 *
 * A key that means the same on both sides comes first, then the best unique
 * constraint: without foreign keys, over the fewest columns, a constraint
 * rather than an index.  A constraint that lets several rows be null would
 * take strangers for each other and is only mentioned.  A single number or
 * uuid without meaning serves as a last resort, when it is copied anyway.
 */
CREATE FUNCTION @extschema@._possync_propose_match(relation regclass, key name[],
												   OUT columns name[], OUT reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	key_copied boolean;
	key_opaque boolean;
	candidate record;
BEGIN
	SELECT bool_and(c.copy),
		   count(*) = 1 AND bool_and(NOT c.foreign_key AND c.type IN
			   ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'uuid'::regtype))
	INTO key_copied, key_opaque
	FROM @extschema@._possync_columns(relation, key) c WHERE c.name = ANY (key);

	IF key_copied AND NOT key_opaque THEN
		columns := key;
		reason := 'recognised by the key';
		RETURN;
	END IF;

	SELECT u.columns, u.decisive, u.is_constraint, u.name INTO candidate
	FROM @extschema@._possync_unique(relation) u
	CROSS JOIN LATERAL (SELECT bool_and(c.copy) AS copied, bool_or(c.foreign_key) AS foreign_key
						FROM @extschema@._possync_columns(relation, key) c
						WHERE c.name = ANY (u.columns)) c
	WHERE NOT u.columns @> key AND c.copied
	ORDER BY u.decisive DESC, c.foreign_key, cardinality(u.columns), u.is_constraint DESC, u.name
	LIMIT 1;

	IF candidate.decisive THEN
		columns := candidate.columns;
		reason := format('unique %s %s',
						 CASE WHEN candidate.is_constraint THEN 'constraint' ELSE 'index' END,
						 candidate.name);
	ELSIF key_copied THEN
		columns := key;
		reason := 'recognised by the key';
	ELSIF candidate.name IS NOT NULL THEN
		reason := format('no match fields, (%s) may be null: choose some with possync_set_field',
						 array_to_string(candidate.columns, ', '));
	ELSE
		reason := 'no match fields, nothing else is unique: choose some with possync_set_field';
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@._possync_propose_match(regclass, name[]) IS 'internal: columns by which a row of a new model is recognised';

/*
 * _possync_propose_change
 *		The columns that tell when a row was changed, and why; columns is null
 *		if there are none.
 *
 * Found by name and type together; a transaction number (xid8) is exact and
 * comes first.  A number that applications count up is never proposed: it
 * cannot tell that a smaller one is still to be committed.  A column that may
 * be null is read together with the time of creation, where there is one:
 * rows without either are read every time.
 */
CREATE FUNCTION @extschema@._possync_propose_change(relation regclass, key name[],
													OUT columns name[], OUT reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	changed CONSTANT text[] := '{updatedat,modifiedat,lastupdatedat,lastmodifiedat,changedat,lastchangedat,
		updated,modified,changed,lastupdate,lastupdated,lastmodified,lastmodification,lastchange,lastchanged,
		updatedon,modifiedon,changedon,lastupdatedon,lastmodifiedon,updatedate,updateddate,modifydate,modifieddate,
		changedate,changeddate,lastupdatedate,lastupdateddate,lastmodifieddate,lastmodificationdate,dateupdated,
		datemodified,datechanged,dateupd,updatetime,updatedtime,modifiedtime,modificationtime,lastupdatetime,
		lastmodifiedtime,updatets,updatedts,modifiedts,modificationdate,writedate,mtime}';
	created CONSTANT text[] := '{createdat,created,createdon,createdate,createddate,creationdate,datecreated,
		dateadd,createtime,createdtime,creationtime,createts,createdts,insertedat,ctime}';
	found record;
	beside name;
BEGIN
	SELECT c.name, c.type, c.not_null INTO found
	FROM (SELECT c.*, replace(lower(c.name), '_', '') AS plain
		  FROM @extschema@._possync_columns(relation, key) c WHERE c.copy) c
	WHERE c.type = 'xid8'::regtype AND c.plain ~ 'chang|updat|modif|version|last|xid|xact'
		  AND c.plain !~ 'creat|insert|delet'
	   OR c.plain = ANY (changed) AND c.type IN ('timestamptz'::regtype, 'timestamp'::regtype)
	ORDER BY c.type <> 'xid8'::regtype, c.type <> 'timestamptz'::regtype, array_position(changed, c.plain), c.name
	LIMIT 1;

	IF found.name IS NULL THEN
		reason := 'no change column found: every row is read';
		RETURN;
	END IF;
	IF NOT found.not_null THEN
		SELECT c.name INTO beside
		FROM @extschema@._possync_columns(relation, key) c
		WHERE c.copy AND c.type = found.type AND replace(lower(c.name), '_', '') = ANY (created)
		ORDER BY array_position(created, replace(lower(c.name), '_', '')), c.name
		LIMIT 1;
	END IF;
	columns := array_remove(ARRAY[found.name, beside], NULL);
	reason := format('changes found by %s', array_to_string(columns, ', '));
END $$;
COMMENT ON FUNCTION @extschema@._possync_propose_change(regclass, name[]) IS 'internal: the columns of a new model that tell when a row was changed';

/*
 * Models
 */

/*
 * _possync_closest
 *		A hint that names what was probably meant: a name that shares at least
 *		half of its pairs of letters, or that contains the other one; null if
 *		there is none.
 */
CREATE FUNCTION @extschema@._possync_closest(wanted text, names text[])
RETURNS text LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('Perhaps you meant "%s".', n.name)
	FROM (SELECT n.name, length(n.name) AS length,
				 (SELECT count(*) FROM generate_series(1, length(n.name) - 1) i
				  WHERE strpos(lower($1), lower(substr(n.name, i, 2))) > 0) AS pairs
		  FROM unnest($2) n (name)) n
	WHERE n.pairs > 0 AND 2 * n.pairs >= greatest(n.length, length($1)) - 1
	ORDER BY n.pairs::float8 / greatest(n.length, length($1)) DESC, n.name COLLATE "C"
	LIMIT 1
$$;
COMMENT ON FUNCTION @extschema@._possync_closest(text, text[]) IS 'internal: a hint that names what was probably meant';

/*
 * _possync_model
 *		The model of a name.
 *
 * Errors: null_value_not_allowed, undefined_object.
 */
CREATE FUNCTION @extschema@._possync_model(name text)
RETURNS @extschema@.synchronize_model LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	model @extschema@.synchronize_model;
	closest text;
BEGIN
	IF $1 IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'model must not be null';
	END IF;
	SELECT m.* INTO model FROM @extschema@.synchronize_model m WHERE m.name = $1;
	IF NOT FOUND THEN
		SELECT @extschema@._possync_closest($1, array_agg(m.name)) INTO closest
		FROM @extschema@.synchronize_model m;
		RAISE undefined_object USING
			MESSAGE = format('model "%s" does not exist', $1),
			HINT = coalesce(closest, 'Add one with possync_add_model(table, server => ...).');
	END IF;
	RETURN model;
END $$;
COMMENT ON FUNCTION @extschema@._possync_model(text) IS 'internal: the model of a name';

/*
 * _possync_check_table
 *		Refuses tables that cannot be synchronized, with an error that says
 *		what to do.
 */
CREATE FUNCTION @extschema@._possync_check_table(relation regclass)
RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	class pg_class;
	kind text;
BEGIN
	SELECT * INTO class FROM pg_class c WHERE c.oid = relation;
	IF NOT FOUND THEN
		RAISE undefined_table USING MESSAGE = format('table with OID %s does not exist', relation::oid);
	END IF;
	kind := CASE class.relkind
				WHEN 'r' THEN NULL WHEN 'p' THEN NULL
				WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view'
				WHEN 'f' THEN 'a foreign table' WHEN 'S' THEN 'a sequence'
				WHEN 'i' THEN 'an index' WHEN 'I' THEN 'an index'
				WHEN 'c' THEN 'a composite type' ELSE 'no table' END;
	IF kind IS NOT NULL THEN
		RAISE wrong_object_type USING
			MESSAGE = format('cannot synchronize %s: it is %s', relation, kind),
			HINT = 'Only tables and partitioned tables can be synchronized.';
	ELSIF class.relispartition THEN
		RAISE wrong_object_type USING
			MESSAGE = format('cannot synchronize %s: it is a partition', relation),
			HINT = format('Add its partitioned table %s; rows find their partition by themselves.',
						  pg_partition_root(relation));
	ELSIF class.relpersistence = 't' THEN
		RAISE wrong_object_type USING
			MESSAGE = format('cannot synchronize %s: it is a temporary table', relation),
			HINT = 'Its rows are visible to one session only.';
	ELSIF class.oid < 16384 THEN
		RAISE wrong_object_type USING
			MESSAGE = format('cannot synchronize %s: it is a system catalog', relation);
	ELSIF EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
				  WHERE d.classid = 'pg_class'::regclass AND d.objid = relation AND d.deptype = 'e'
					AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'possync') THEN
		RAISE wrong_object_type USING
			MESSAGE = format('cannot synchronize %s: it belongs to possync itself', relation);
	ELSIF @extschema@._possync_key(relation) IS NULL THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('table %s has no key', relation),
			DETAIL = 'A row is told from others by a primary key or by a unique constraint over columns that are not null; deferrable ones, those WITHOUT OVERLAPS, and indexes with expressions or a condition do not serve.',
			HINT = format('Add one: ALTER TABLE %s ADD PRIMARY KEY (...);', relation);
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@._possync_check_table(regclass) IS 'internal: refuses tables that cannot be synchronized';

/*
 * _possync_check_server
 *		Refuses what is not a server of possync.
 */
CREATE FUNCTION @extschema@._possync_check_server(server name)
RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	wrapper name;
	closest text;
BEGIN
	SELECT w.fdwname INTO wrapper
	FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
	WHERE s.srvname = server;
	IF wrapper LIKE 'possync\_%' THEN
		RETURN;
	END IF;
	SELECT @extschema@._possync_closest(server, array_agg(s.srvname::text)) INTO closest
	FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
	WHERE w.fdwname LIKE 'possync\_%';
	RAISE undefined_object USING
		MESSAGE = CASE WHEN wrapper IS NULL THEN format('server "%s" does not exist', server)
					   ELSE format('server "%s" belongs to foreign-data wrapper "%s", which is not one of possync''s',
								   server, wrapper) END,
		HINT = CASE WHEN wrapper IS NOT NULL THEN 'Use a server of the wrapper possync_postgres or possync_tryton.'
					ELSE coalesce(closest, 'Make one: CREATE SERVER ... FOREIGN DATA WRAPPER possync_postgres OPTIONS (...);') END;
END $$;
COMMENT ON FUNCTION @extschema@._possync_check_server(name) IS 'internal: refuses what is not a server of possync';

/*
 * _possync_free_name
 *		A model name for a table that is not taken: the table's own, else with
 *		its schema (with the server, where the same table is there for another
 *		one), else with a number.
 */
CREATE FUNCTION @extschema@._possync_free_name(relation regclass, server name)
RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT p.name
	FROM pg_class c
	JOIN pg_namespace n ON n.oid = c.relnamespace
	CROSS JOIN LATERAL (
		SELECT 0 AS rank, c.relname::text AS name
		UNION ALL
		SELECT 1, CASE WHEN EXISTS (SELECT FROM @extschema@.synchronize_model m WHERE m.relation = $1)
					   THEN c.relname || '_' || $2 ELSE n.nspname || '_' || c.relname END
		UNION ALL
		SELECT i, c.relname || '_' || i
		FROM generate_series(2, 2 + (SELECT count(*) FROM @extschema@.synchronize_model)) i) p
	WHERE c.oid = $1
	  AND NOT EXISTS (SELECT FROM @extschema@.synchronize_model m WHERE m.name = p.name)
	ORDER BY p.rank LIMIT 1
$$;
COMMENT ON FUNCTION @extschema@._possync_free_name(regclass, name) IS 'internal: a model name that is not taken';

/*
 * _possync_rematch
 *		Chooses the match fields of a model anew, one of which was dropped or
 *		renamed: what is left of them may fit rows that have nothing to do with
 *		each other.
 *
 * Returns what was chosen, in words.  Where nothing is certain enough it warns.
 */
CREATE FUNCTION @extschema@._possync_rematch(model smallint)
RETURNS text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	owner @extschema@.synchronize_model;
	proposal record;
BEGIN
	SELECT m.* INTO owner FROM @extschema@.synchronize_model m WHERE m.id = $1;
	proposal := @extschema@._possync_propose_match(owner.relation, owner.key_columns);
	/* somebody may have decided not to copy what is proposed */
	IF EXISTS (SELECT FROM @extschema@.synchronize_field f
			   WHERE f.model = $1 AND f.name = ANY (proposal.columns) AND NOT f.copy AND f.fixed IS NULL) THEN
		proposal.columns := NULL;
		proposal.reason := 'no match fields: choose some with possync_set_field';
	END IF;
	UPDATE @extschema@.synchronize_field f SET match = coalesce(f.name = ANY (proposal.columns), false)
	WHERE f.model = $1 AND f.match IS DISTINCT FROM coalesce(f.name = ANY (proposal.columns), false);
	UPDATE @extschema@.synchronize_model m
	SET on_unknown = CASE WHEN m.on_unknown = 'match_create' AND proposal.columns IS NULL THEN 'create'
						  ELSE m.on_unknown END,
		reason = concat_ws('; ', proposal.reason, nullif(split_part(m.reason, '; ', 2), ''))
	WHERE m.id = $1;
	IF proposal.columns IS NULL THEN
		RAISE WARNING USING
			MESSAGE = format('model "%s" has lost its match fields', owner.name),
			DETAIL = CASE owner.on_unknown
						 WHEN 'match_create' THEN 'Rows that are not known yet are only created from now on, also where the same is here already.'
						 ELSE 'Rows that are not known yet are not recognised from now on.' END,
			HINT = format('Choose others with possync_set_field(%L, ..., match => true).', owner.name);
		RETURN 'match fields lost';
	END IF;
	RETURN 'match fields chosen anew: ' || array_to_string(proposal.columns, ', ');
END $$;
COMMENT ON FUNCTION @extschema@._possync_rematch(smallint) IS 'internal: chooses the match fields of a model anew';

/*
 * _possync_add_table
 *		Makes a table a model of a server, or brings its model up to date with
 *		columns that were added or dropped.
 *
 * name and remote: null for the proposal.  Sets id, whether it is new, and
 * what was found, null if nothing.  The model of another owner's table is
 * shared as it is.
 */
CREATE FUNCTION @extschema@._possync_add_table(relation regclass, server name, name text, remote text,
											   OUT id smallint, OUT is_new boolean, OUT note text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	key name[];
	match_columns name[];
	match_reason text;
	change record;
	added text;
	dropped text;
	lost boolean;
	chosen text;
BEGIN
	SELECT m.id, m.key_columns INTO id, key
	FROM @extschema@.synchronize_model m WHERE m.relation = $1 AND m.server = $2;
	is_new := NOT FOUND;
	IF is_new THEN
		PERFORM @extschema@._possync_check_table($1);
		PERFORM @extschema@._possync_check_rights($1, $2);
		key := @extschema@._possync_key($1);
		SELECT m.columns, m.reason INTO match_columns, match_reason
		FROM @extschema@._possync_propose_match($1, key) m;
		IF @extschema@._possync_tells_changes($2) THEN
			SELECT NULL::name[] AS columns, 'the server tells what changed' AS reason INTO change;
		ELSE
			change := @extschema@._possync_propose_change($1, key);
		END IF;
		note := match_reason || '; ' || change.reason;
		INSERT INTO @extschema@.synchronize_model
			(name, relation, server, remote, key_columns, on_unknown, change_columns, reason)
		SELECT coalesce($3, @extschema@._possync_free_name($1, $2)), $1, $2,
			   @extschema@._possync_remote($2, $1, $4), key,
			   CASE WHEN match_columns IS NULL THEN 'create' ELSE 'match_create' END,
			   change.columns::text[], note
		RETURNING synchronize_model.id INTO id;
	ELSIF NOT pg_has_role((SELECT c.relowner FROM pg_class c WHERE c.oid = $1), 'USAGE') THEN
		RETURN;
	ELSIF NOT EXISTS (SELECT FROM @extschema@._possync_unique($1) u
					  WHERE u.not_null AND u.columns @> key AND u.columns <@ key) THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('table %s is no longer unique by %s', $1, array_to_string(key, ', ')),
			DETAIL = 'These are the columns by which its rows were told apart when it was configured.',
			HINT = 'Make them a unique constraint over columns that are not null, or remove the model with possync_remove_model and add it again.';
	END IF;

	WITH new AS (
		INSERT INTO @extschema@.synchronize_field (model, name, remote, copy, match, reason)
		SELECT _possync_add_table.id, c.name, c.name, c.copy, is_new AND coalesce(c.name = ANY (match_columns), false), c.reason
		FROM @extschema@._possync_columns($1, key) c
		ON CONFLICT (model, name) DO NOTHING
		RETURNING name)
	SELECT string_agg(new.name, ', ' ORDER BY a.attnum) INTO added
	FROM new JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = new.name;
	IF is_new THEN
		RETURN;
	END IF;

	WITH old AS (
		DELETE FROM @extschema@.synchronize_field f
		WHERE f.model = _possync_add_table.id AND NOT EXISTS (SELECT FROM pg_attribute a
										   WHERE a.attrelid = $1 AND a.attname = f.name AND NOT a.attisdropped)
		RETURNING f.name, f.match)
	SELECT string_agg(old.name, ', ' ORDER BY old.name), bool_or(old.match) INTO dropped, lost FROM old;

	IF lost THEN
		chosen := @extschema@._possync_rematch(_possync_add_table.id);
	END IF;
	IF added IS NOT NULL OR lost THEN
		DELETE FROM @extschema@.synchronize_position p WHERE p.model = _possync_add_table.id;
	END IF;
	note := nullif(concat_ws('; ', 'new columns: ' || added, 'columns no longer there: ' || dropped, chosen), '');
END $$;
COMMENT ON FUNCTION @extschema@._possync_add_table(regclass, name, text, text) IS 'internal: makes a table a model, or brings its model up to date';

/* What possync_add_model and possync_add_child tell about every model. */
CREATE TYPE @extschema@.possync_member AS (
	model text,
	relation regclass,
	remote text,
	role text,
	reason text
);
COMMENT ON TYPE @extschema@.possync_member IS 'a model of a tree, its part in it and why';
COMMENT ON COLUMN @extschema@.possync_member.role IS 'root, child, dependency, shared (a dependency that was there before) or left out';

/*
 * _possync_warn_unmatched
 *		Warns of new models whose tables have rows that nothing recognises.
 */
CREATE FUNCTION @extschema@._possync_warn_unmatched(models smallint[])
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	model @extschema@.synchronize_model;
	filled boolean;
	names text[] := '{}';
BEGIN
	FOR model IN
		SELECT m.* FROM unnest(models) WITH ORDINALITY u (id, n)
		JOIN @extschema@.synchronize_model m USING (id)
		WHERE m.on_unknown = 'create' AND has_table_privilege(m.relation, 'SELECT')
		ORDER BY u.n
	LOOP
		EXECUTE format('SELECT EXISTS (SELECT FROM %s)', model.relation) INTO filled;
		IF filled THEN
			names := names || model.name;
		END IF;
	END LOOP;
	IF names <> '{}' THEN
		RAISE WARNING USING
			MESSAGE = format('rows that are here already will not be recognised: %s', array_to_string(names, ', ')),
			DETAIL = 'There are no match fields, so that a pull creates every row of the remote table beside them.',
			HINT = format('Choose match fields before the first pull: possync_set_field(%L, ..., match => true).', names[1]);
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@._possync_warn_unmatched(smallint[]) IS 'internal: warns of rows that will not be recognised';

/*
 * _possync_add_tree
 *		Adds a table, the children that belong to it, and all that these depend
 *		on.
 *
 * parent: the model whose child the table becomes, null for a root.  name and
 * remote are the table's, null for the proposal.  Children are looked for
 * first, so that a table that is both is a child, and below the table and its
 * children only, never below a dependency.  A foreign key whose columns
 * somebody excluded from copying is not followed.
 */
CREATE FUNCTION @extschema@._possync_add_tree(relation regclass, server name, name text, remote text, parent smallint)
RETURNS SETOF @extschema@.possync_member
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	tables regclass[] := ARRAY[$1];
	parents regclass[] := ARRAY[NULL::regclass];
	keys text[] := ARRAY[NULL::text];
	ids smallint[] := '{}';
	new smallint[] := '{}';
	notes text[] := '{}';
	roles text[] := '{}';
	left_out regclass[] := '{}';
	left_out_reasons text[] := '{}';
	nchildren integer;
	i integer;
	added record;
	link record;
BEGIN
	/* One at a time, so that nobody adds the same table meanwhile. */
	LOCK TABLE @extschema@.synchronize_model IN SHARE ROW EXCLUSIVE MODE;

	i := 1;
	WHILE i <= cardinality(tables) LOOP
		FOR link IN
			SELECT f.relation, array_to_string(f.columns, ', ') AS columns, c.relname,
				   @extschema@._possync_key(f.relation) IS NOT NULL AS has_key
			FROM @extschema@._possync_foreign_key f JOIN pg_class c ON c.oid = f.relation
			WHERE f.referenced = tables[i] AND f.cascades AND f.not_null
			ORDER BY c.relname, c.oid, f.first_column, f.name
		LOOP
			IF link.relation = ANY (tables || left_out) THEN
				CONTINUE;
			ELSIF link.has_key THEN
				tables := tables || link.relation;
				parents := parents || tables[i];
				keys := keys || link.columns;
			ELSE
				left_out := left_out || link.relation;
				left_out_reasons := left_out_reasons ||
					format('belongs here by %s, but has no key; give it a primary key, then call possync_add_child',
						   link.columns);
			END IF;
		END LOOP;
		i := i + 1;
	END LOOP;
	nchildren := cardinality(tables);

	i := 1;
	WHILE i <= cardinality(tables) LOOP
		added := @extschema@._possync_add_table(tables[i], $2, CASE WHEN i = 1 THEN $3 END,
												CASE WHEN i = 1 THEN $4 END);
		ids := ids || added.id;
		new := new || CASE WHEN added.is_new THEN added.id END;
		notes := notes || CASE WHEN NOT added.is_new THEN coalesce(added.note, 'nothing new') END;
		roles := roles || CASE WHEN i = 1 AND $5 IS NULL THEN 'root'
							   WHEN i <= nchildren THEN 'child'
							   WHEN added.is_new THEN 'dependency'
							   ELSE 'shared' END;
		SELECT tables || array_agg(r.referenced ORDER BY r.first_column) INTO tables
		FROM (SELECT f.referenced, min(f.first_column) AS first_column
			  FROM @extschema@._possync_foreign_key f
			  WHERE f.relation = tables[i] AND f.referenced <> ALL (tables)
				AND EXISTS (SELECT FROM @extschema@.synchronize_field s
							WHERE s.model = added.id AND s.name = ANY (f.columns) AND s.copy)
			  GROUP BY f.referenced) r;
		i := i + 1;
	END LOOP;

	/* Where the table itself becomes a child, its caller knows by which key. */
	FOR i IN 2 .. nchildren LOOP
		INSERT INTO @extschema@.synchronize_child (model, child, reason)
		VALUES (ids[array_position(tables, parents[i])], ids[i],
				format('%s is not null, on delete cascade', keys[i]))
		ON CONFLICT DO NOTHING;
	END LOOP;

	RETURN QUERY
	SELECT m.name, m.relation, m.remote, t.role,
		   concat_ws('; ',
			   CASE WHEN t.role = 'root' THEN CASE WHEN t.note IS NULL THEN 'asked for' ELSE 'configured already' END
					WHEN t.role = 'child' THEN
						(SELECT 'belongs to ' || string_agg(p.name, ', ' ORDER BY p.name COLLATE "C")
						 FROM @extschema@.synchronize_model p
						 WHERE p.id = parent AND t.n = 1
							OR p.id IN (SELECT c.model FROM @extschema@.synchronize_child c WHERE c.child = t.id))
					ELSE (SELECT string_agg(format('%s (%s)', r.model, array_to_string(r.columns, ', ')), ', '
											ORDER BY array_position(ids, r.model_id), r.first_column, r.columns)
								 || CASE count(*) WHEN 1 THEN ' refers to it' ELSE ' refer to it' END
						  FROM @extschema@.possync_reference r
						  WHERE r.referenced_id = t.id AND r.model_id = ANY (ids) AND r.model_id <> t.id)
			   END, t.note)
	FROM unnest(ids, roles, notes) WITH ORDINALITY t (id, role, note, n)
	JOIN @extschema@.synchronize_model m ON m.id = t.id
	ORDER BY t.n;
	PERFORM @extschema@._possync_warn_unmatched(array_remove(new, NULL));

	RETURN QUERY
	SELECT NULL::text, l.relation, NULL::text, 'left out', l.reason
	FROM unnest(left_out, left_out_reasons) WITH ORDINALITY l (relation, reason, n)
	ORDER BY l.n;
END $$;
COMMENT ON FUNCTION @extschema@._possync_add_tree(regclass, name, text, text, smallint) IS 'internal: adds a table with its children and all they depend on';

/*
 * possync_add_model
 *		Configures a table, the children that belong to it and everything they
 *		refer to by foreign keys for synchronization with a server.
 *
 * relation	the table; a partitioned table stands for its partitions
 * server	a server of one of possync's wrappers
 * name		name of the model; by default the table's
 * remote	the remote table; by default the name of the local one, as the server
 *			writes it
 *
 * Returns one row for every model of the tree, and one with role 'left out'
 * for every child that cannot take part.  Tables that the server has already
 * are shared.  Adding a table again brings it up to date: new columns, new
 * foreign keys.
 *
 * Errors: undefined_object (server), wrong_object_type (no table),
 * object_not_in_prerequisite_state (no key), duplicate_object (name),
 * invalid_parameter_value (remote), insufficient_privilege.
 */
CREATE FUNCTION @extschema@.possync_add_model(relation regclass, server name,
											  name text DEFAULT NULL, remote text DEFAULT NULL)
RETURNS SETOF @extschema@.possync_member
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	present @extschema@.synchronize_model;
BEGIN
	IF $1 IS NULL OR $2 IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'table and server must not be null';
	END IF;
	PERFORM @extschema@._possync_check_server($2);
	PERFORM @extschema@._possync_check_table($1);
	PERFORM @extschema@._possync_check_rights($1, $2);
	SELECT m.* INTO present FROM @extschema@.synchronize_model m WHERE m.relation = $1 AND m.server = $2;
	IF present.name <> $3 OR present.remote <> $4 THEN
		RAISE duplicate_object USING
			MESSAGE = format('table %s is already configured for server "%s"', $1, $2),
			DETAIL = format('It is model "%s" with remote table %s.', present.name, present.remote),
			HINT = 'Change it with possync_set_model.';
	ELSIF $3 = '' THEN
		RAISE invalid_parameter_value USING MESSAGE = 'the name of a model must not be empty';
	ELSIF EXISTS (SELECT FROM @extschema@.synchronize_model m
				  WHERE m.name = $3 AND m.id IS DISTINCT FROM present.id) THEN
		RAISE duplicate_object USING
			MESSAGE = format('model "%s" already exists', $3),
			HINT = 'Choose another name.';
	END IF;
	RETURN QUERY SELECT * FROM @extschema@._possync_add_tree($1, $2, $3, $4, NULL);
END $$;
COMMENT ON FUNCTION @extschema@.possync_add_model(regclass, name, text, text) IS 'configures a table, its children and everything they refer to for synchronization with a server';

/*
 * _possync_create_table
 *		Makes a table for a remote model, after those that it depends on, and
 *		configures it.  making: models whose tables are being made.
 */
CREATE FUNCTION @extschema@._possync_create_table(server name, model text, fields text[], schema name, making text[])
RETURNS regclass LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	proposed name := translate($2, '.:-', '___');
	made regclass := to_regclass(format('%I.%I', $4, proposed));
	wanted text;
	step text;
	owner text;
	field record;
	definitions text[] := '{}';
	remotes text[] := '{}';
	links text[] := '{}';
	other regclass;
	link regclass;
BEGIN
	IF made IS NOT NULL THEN
		PERFORM @extschema@.possync_add_model(made, $1, remote => $2)
		WHERE NOT EXISTS (SELECT FROM @extschema@.synchronize_model m
						  WHERE m.relation = made AND m.server = $1);
		RETURN made;
	END IF;
	FOREACH wanted IN ARRAY coalesce((SELECT array_agg(f.field) FROM @extschema@.possync_remote_fields($1, $2) f WHERE f.key), '{}')
		|| coalesce($3, (SELECT array_agg(f.field ORDER BY NOT f.required, f.field)
						 FROM @extschema@.possync_remote_fields($1, $2) f
						 WHERE f.stored AND NOT f.key AND f.type IS NOT NULL AND (f.required OR f.writable)
						   AND (f.required OR f.refers_to IS NULL)))
	LOOP
		/* a path leads over other models */
		owner := $2;
		FOREACH step IN ARRAY string_to_array(wanted, '.') LOOP
			SELECT f.* INTO field FROM @extschema@.possync_remote_fields($1, owner) f WHERE f.field = step;
			IF NOT FOUND THEN
				RAISE undefined_column USING
					MESSAGE = format('remote model "%s" has no field "%s"', $2, wanted),
					HINT = 'possync_remote_fields tells which there are.';
			END IF;
			owner := field.refers_to;
		END LOOP;
		IF field.type IS NULL OR (field.type::text LIKE '%[]' AND field.kind <> 'many2many' AND field.refers_to IS NOT NULL) THEN
			RAISE feature_not_supported USING
				MESSAGE = format('field "%s" of remote model "%s" is no column', wanted, $2),
				HINT = CASE WHEN field.refers_to IS NOT NULL
							THEN format('Its rows are those of "%s": make a table for that.', field.refers_to) END;
		ELSIF field.kind = 'many2many' THEN
			links := links || wanted;
			CONTINUE;
		END IF;
		other := NULL;
		IF field.refers_to IS NOT NULL AND wanted = field.field THEN
			IF field.refers_to = $2 THEN
				other := 0;
			ELSIF field.refers_to <> ALL ($5) THEN
				other := @extschema@._possync_create_table($1, field.refers_to, NULL, $4, $5 || $2);
			END IF;
		END IF;
		remotes := remotes || wanted;
		definitions := definitions || format('%I %s%s%s%s', replace(wanted, '.', '_'), field.type,
			CASE WHEN field.key THEN ' GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY' ELSE '' END,
			CASE WHEN field.required AND field.stored AND NOT field.key AND wanted = field.field THEN ' NOT NULL' ELSE '' END,
			CASE WHEN other = 0 THEN format(' REFERENCES %I.%I', $4, proposed)
				 WHEN other IS NOT NULL THEN format(' REFERENCES %s', other) ELSE '' END);
	END LOOP;
	EXECUTE format('CREATE TABLE %I.%I (%s)', $4, proposed, array_to_string(definitions, ', '));
	made := format('%I.%I', $4, proposed)::regclass;
	PERFORM @extschema@.possync_add_model(made, $1, remote => $2);
	FOREACH wanted IN ARRAY remotes LOOP
		PERFORM @extschema@.possync_set_field(m.name, replace(wanted, '.', '_')::name, remote => wanted)
		FROM @extschema@.synchronize_model m
		WHERE m.relation = made AND m.server = $1 AND wanted LIKE '%.%';
	END LOOP;

	/* what a list of records links is a table of its own */
	FOREACH wanted IN ARRAY links LOOP
		SELECT f.* INTO field FROM @extschema@.possync_remote_fields($1, $2) f WHERE f.field = wanted;
		other := @extschema@._possync_create_table($1, field.refers_to, NULL, $4, $5 || $2);
		EXECUTE format('CREATE TABLE %I.%I (origin integer REFERENCES %s, target integer REFERENCES %s, PRIMARY KEY (origin, target))',
					   $4, proposed || '_' || wanted, made, other);
		link := format('%I.%I', $4, proposed || '_' || wanted)::regclass;
		PERFORM @extschema@.possync_add_model(link, $1, remote => $2 || ':' || wanted);
	END LOOP;
	RETURN made;
END $$;
COMMENT ON FUNCTION @extschema@._possync_create_table(name, text, text[], name, text[]) IS 'internal: makes a table for a remote model, and those that it depends on';

/*
 * possync_create_table
 *		Makes a local table for a remote model, after those that it depends on,
 *		and configures all of them, as possync_add_model does.
 *
 * server	a server that can be asked what it has
 * model	as the server calls it
 * fields	the columns to be, as the server calls them; "template.name" is a
 *			field of the record that another one refers to, a many2many field
 *			becomes a table of its own.  By default all that are stored and may
 *			be written or have to be there; of references only the latter
 * schema	where the tables are made
 *
 * A table that is there already is taken as it is.  Returns the model's tree, as
 * possync_add_model.  Errors: undefined_object (server, model), undefined_column
 * (field), feature_not_supported (field or server), insufficient_privilege.
 */
CREATE FUNCTION @extschema@.possync_create_table(server name, model text, fields text[] DEFAULT NULL,
												 schema name DEFAULT current_schema())
RETURNS SETOF @extschema@.possync_member
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF $1 IS NULL OR $2 IS NULL OR $4 IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'server, model and schema must not be null';
	END IF;
	PERFORM @extschema@._possync_check_server($1);
	RETURN QUERY SELECT * FROM @extschema@.possync_add_model(
		@extschema@._possync_create_table($1, $2, $3, $4, '{}'), $1);
END $$;
COMMENT ON FUNCTION @extschema@.possync_create_table(name, text, text[], name) IS 'makes a local table for a remote model, with those that it depends on, and configures them';

/*
 * possync_add_child
 *		Adds a table that refers to a model, or to one of its children, as a
 *		child that travels with it, together with what the child refers to.
 *
 * Returns rows as possync_add_model does.  Errors: as possync_add_model, and
 * invalid_foreign_key if the table does not refer to the model.
 */
CREATE FUNCTION @extschema@.possync_add_child(model text, child regclass)
RETURNS SETOF @extschema@.possync_member
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	root @extschema@.synchronize_model := @extschema@._possync_model($1);
	link record;
BEGIN
	IF $2 IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'table must not be null';
	END IF;
	PERFORM @extschema@._possync_check_table($2);
	WITH RECURSIVE below (id) AS (
		SELECT root.id
		UNION
		SELECT c.child FROM below b JOIN @extschema@.synchronize_child c ON c.model = b.id)
	SELECT m.id, f.columns INTO link
	FROM below b
	JOIN @extschema@.synchronize_model m ON m.id = b.id
	JOIN @extschema@._possync_foreign_key f ON f.referenced = m.relation AND f.relation = $2
	WHERE m.relation <> $2
	ORDER BY m.id <> root.id, m.id, f.not_null DESC, f.first_column
	LIMIT 1;
	IF NOT FOUND THEN
		RAISE invalid_foreign_key USING
			MESSAGE = format('table %s has no foreign key to model "%s" or its children', $2, $1),
			HINT = format('To synchronize it by itself, use possync_add_model(%L, server => %L).', $2, root.server);
	END IF;
	RETURN QUERY SELECT * FROM @extschema@._possync_add_tree($2, root.server, NULL, NULL, link.id);
	INSERT INTO @extschema@.synchronize_child (model, child, reason)
	SELECT link.id, m.id, format('%s, asked for', array_to_string(link.columns, ', '))
	FROM @extschema@.synchronize_model m WHERE m.relation = $2 AND m.server = root.server
	ON CONFLICT DO NOTHING;
END $$;
COMMENT ON FUNCTION @extschema@.possync_add_child(text, regclass) IS 'adds a table that refers to a model as a child that travels with it';

/*
 * possync_remove_model
 *		Removes one model; what it refers to stays.
 *
 * forget: also forget which remote row is which local row, and what waits to be
 * pushed.  Errors: dependent_objects_still_exist while other models refer to it,
 * object_in_use while rows are translated, or changes wait, and forget is not given.
 */
CREATE FUNCTION @extschema@.possync_remove_model(model text, forget boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	old @extschema@.synchronize_model;
	users text;
	translations bigint;
	waiting bigint;
BEGIN
	LOCK TABLE @extschema@.synchronize_model IN SHARE ROW EXCLUSIVE MODE;
	old := @extschema@._possync_model($1);
	PERFORM @extschema@._possync_check_rights(old.relation, old.server, removing => true);
	SELECT string_agg(format('%s (%s)', r.model, array_to_string(r.columns, ', ')), ', '
					  ORDER BY r.model COLLATE "C", r.first_column, r.columns) INTO users
	FROM @extschema@.possync_reference r WHERE r.referenced_id = old.id AND r.model_id <> old.id;
	IF users IS NOT NULL THEN
		RAISE dependent_objects_still_exist USING
			MESSAGE = format('cannot remove model "%s": other models refer to it', old.name),
			DETAIL = format('They are %s.', users),
			HINT = 'Remove them first, or exclude the columns with possync_set_field(copy => false).';
	END IF;
	translations := @extschema@._possync_translations(old.id);
	IF translations > 0 AND forget IS NOT TRUE THEN
		RAISE object_in_use USING
			MESSAGE = format('cannot remove model "%s": rows are synchronized', old.name),
			DETAIL = format('For %s of them it is known which remote row is which local row.', translations),
			HINT = format('possync_remove_model(%L, forget => true) forgets that, too; should the table be added again, its rows have to be recognised anew.', old.name);
	END IF;
	waiting := @extschema@._possync_waiting(old.id);
	IF waiting > 0 AND forget IS NOT TRUE THEN
		RAISE object_in_use USING
			MESSAGE = format('cannot remove model "%s": changes of its rows wait to be pushed', old.name),
			DETAIL = format('There are %s.', waiting),
			HINT = format('Push them first; possync_remove_model(%L, forget => true) forgets them.', old.name);
	END IF;
	DELETE FROM @extschema@.synchronize_model m WHERE m.id = old.id;
END $$;
COMMENT ON FUNCTION @extschema@.possync_remove_model(text, boolean) IS 'removes a model; what it refers to stays';

/*
 * _possync_does
 *		What is done with rows of a model, in words.
 */
CREATE FUNCTION @extschema@._possync_does(model smallint)
RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE m.on_unknown
			   WHEN 'ignore' THEN 'not read'
			   WHEN 'create' THEN 'create'
			   ELSE format('match by %s', coalesce(
				   (SELECT string_agg(f.name, ', ' ORDER BY a.attnum)
					FROM @extschema@.synchronize_field f
					LEFT JOIN pg_attribute a ON a.attrelid = m.relation AND a.attname = f.name
					WHERE f.model = m.id AND f.match), 'nothing'))
				   || CASE m.on_unknown WHEN 'match' THEN '' ELSE ', else create' END
				   || CASE m.on_match WHEN 'keep' THEN '; keep matched' ELSE '' END
				   || CASE m.on_delete WHEN 'delete' THEN '; delete what is deleted there'
									   WHEN 'deactivate' THEN format('; %s = %s when deleted there', m.inactive_field, m.inactive_value) ELSE '' END
		   END
	FROM @extschema@.synchronize_model m WHERE m.id = $1
$$;
COMMENT ON FUNCTION @extschema@._possync_does(smallint) IS 'internal: what is done with rows of a model, in words';

/*
 * _possync_does
 *		What is done with a column, in words.
 */
CREATE FUNCTION @extschema@._possync_does(model smallint, field name)
RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN f.fixed IS NOT NULL THEN 'always ' || quote_literal(f.fixed)
				WHEN f.copy THEN coalesce(
					(SELECT 'translate through ' || string_agg(DISTINCT r.referenced COLLATE "C", ', ')
					 FROM @extschema@.possync_reference r
					 WHERE r.model_id = f.model AND f.name = ANY (r.columns)), 'copy')
				WHEN f.name = ANY (m.key_columns) OR a.attgenerated <> '' OR a.attidentity <> '' THEN 'made here'
				ELSE 'left alone' END
		   || CASE WHEN f.match THEN ', match' ELSE '' END
		   || CASE WHEN f.copy AND f.remote = ANY (m.change_columns) THEN ', change' || coalesce(
				(SELECT '; updates are cheaper without index ' || string_agg(i.indexrelid::regclass::text, ', ' ORDER BY i.indexrelid)
				 FROM pg_index i
				 WHERE i.indrelid = m.relation AND a.attnum = ANY (i.indkey) AND NOT i.indisunique), '') ELSE '' END
	FROM @extschema@.synchronize_field f
	JOIN @extschema@.synchronize_model m ON m.id = f.model
	LEFT JOIN pg_attribute a ON a.attrelid = m.relation AND a.attname = f.name
	WHERE f.model = $1 AND f.name = $2
$$;
COMMENT ON FUNCTION @extschema@._possync_does(smallint, name) IS 'internal: what is done with a column, in words';

/*
 * _possync_inactive
 *		How a row of a table is deactivated: by which column, set to what.
 *
 * field and value are what is known of it; the rest is found by usual names of
 * boolean columns.  Null if nothing is.  Errors: undefined_column, and what the
 * type says about the value.
 */
CREATE FUNCTION @extschema@._possync_inactive(relation regclass, INOUT field name, INOUT value text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	usual text;
	attribute pg_attribute;
BEGIN
	SELECT a.attname, u.value INTO field, usual
	FROM pg_attribute a
	LEFT JOIN (VALUES ('active', 'false'), ('is_active', 'false'), ('enabled', 'false'), ('is_enabled', 'false'),
					  ('inactive', 'true'), ('is_inactive', 'true'), ('disabled', 'true'), ('is_disabled', 'true'),
					  ('archived', 'true'), ('is_archived', 'true'), ('deleted', 'true'), ('is_deleted', 'true')) u (name, value)
		ON u.name = a.attname AND a.atttypid = 'boolean'::regtype
	WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
		AND (a.attname = field OR field IS NULL AND u.name IS NOT NULL)
	ORDER BY u.name LIMIT 1;
	value := coalesce(value, usual);
	IF field IS NULL OR value IS NULL THEN
		RETURN;
	END IF;
	SELECT * INTO attribute FROM pg_attribute a WHERE a.attrelid = relation AND a.attname = field;
	PERFORM @extschema@._possync_check_value(value, attribute.atttypid, attribute.atttypmod, format('column "%s"', field));
	EXECUTE format('SELECT (%L::%s)::text', value, format_type(attribute.atttypid, attribute.atttypmod)) INTO value;
END $$;
COMMENT ON FUNCTION @extschema@._possync_inactive(regclass, name, text) IS 'internal: how a row of a table is deactivated';

/*
 * possync_set_model
 *		Changes a model; null leaves a property as it is.
 *
 * model			the model to change
 * name				its new name
 * remote			the remote table
 * on_unknown		match_create, match, create or ignore
 * on_match			update or keep
 * on_conflict		local_wins, remote_wins, newest or ask
 * change_columns	remote columns; an empty array: every row is read
 * on_delete		ignore, deactivate or delete
 * inactive_field	the local column that deactivate sets; found by usual names
 *					(active, archived, ...) of boolean columns if null
 * inactive_value	to which value
 * after_create		methods that are called at the remote, in this order, for rows
 *					that a push has created there; an empty array: none.  Of
 *					"confirm=confirmed|done" the state that comes of it is
 *					verified.  A method may be called for a row again
 *
 * A change of what is read or of how rows are recognised makes the next pull
 * read every row.  Returns what is done with rows of the model now.  Errors:
 * undefined_object, duplicate_object, invalid_parameter_value,
 * undefined_column, insufficient_privilege.
 */
CREATE FUNCTION @extschema@.possync_set_model(model text, name text DEFAULT NULL, remote text DEFAULT NULL,
											  on_unknown text DEFAULT NULL, on_match text DEFAULT NULL,
											  change_columns text[] DEFAULT NULL,
											  on_conflict text DEFAULT NULL,
											  on_delete text DEFAULT NULL,
											  inactive_field name DEFAULT NULL,
											  inactive_value text DEFAULT NULL,
											  after_create text[] DEFAULT NULL)
RETURNS text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	old @extschema@.synchronize_model := @extschema@._possync_model($1);
	new @extschema@.synchronize_model;
	inactive record;
BEGIN
	PERFORM @extschema@._possync_check_rights(old.relation, old.server);
	IF $2 = '' THEN
		RAISE invalid_parameter_value USING MESSAGE = 'the name of a model must not be empty';
	ELSIF EXISTS (SELECT FROM @extschema@.synchronize_model m WHERE m.name = $2 AND m.id <> old.id) THEN
		RAISE duplicate_object USING
			MESSAGE = format('model "%s" already exists', $2),
			HINT = 'Choose another name.';
	END IF;
	IF $3 IS NOT NULL THEN
		PERFORM @extschema@._possync_remote(old.server, old.relation, $3);
	END IF;
	IF $4 NOT IN ('match_create', 'match', 'create', 'ignore') THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid value for on_unknown: "%s"', $4),
			HINT = 'Allowed are match_create, match, create and ignore.';
	ELSIF $4 IN ('match_create', 'match')
		  AND NOT EXISTS (SELECT FROM @extschema@.synchronize_field f WHERE f.model = old.id AND f.match) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('model "%s" has no match fields', old.name),
			HINT = format('Choose them first: possync_set_field(%L, ..., match => true).', old.name);
	END IF;
	IF $5 NOT IN ('update', 'keep') THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid value for on_match: "%s"', $5),
			HINT = 'Allowed are update and keep.';
	END IF;
	IF $7 NOT IN ('local_wins', 'remote_wins', 'newest', 'ask') THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid value for on_conflict: "%s"', $7),
			HINT = 'Allowed are local_wins, remote_wins, newest and ask.';
	ELSIF $7 = 'newest' AND coalesce($6, old.change_columns, '{}') = '{}' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('model "%s" has no change columns, which would tell the newest row', old.name),
			HINT = format('Choose some first: possync_set_model(%L, change_columns => ...).', old.name);
	END IF;
	IF array_position($6, NULL) IS NOT NULL OR '' = ANY ($6) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'change columns must not be null or empty',
			HINT = 'An empty array means none: every row is read and compared.';
	END IF;

	IF $8 NOT IN ('ignore', 'deactivate', 'delete') THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid value for on_delete: "%s"', $8),
			HINT = 'Allowed are ignore, deactivate and delete.';
	END IF;
	IF $9 IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = old.relation AND a.attname = $9
									  AND a.attnum > 0 AND NOT a.attisdropped) THEN
		RAISE undefined_column USING MESSAGE = format('column "%s" of table %s does not exist', $9, old.relation);
	END IF;
	SELECT i.field, i.value INTO inactive
	FROM @extschema@._possync_inactive(old.relation, coalesce($9, old.inactive_field), coalesce($10, CASE WHEN $9 IS NULL THEN old.inactive_value END)) i;
	IF coalesce($8, old.on_delete) = 'deactivate' AND inactive.value IS NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('nothing tells how a row of model "%s" is deactivated', old.name),
			HINT = format('Say which column is set to what: possync_set_model(%L, on_delete => ''deactivate'', inactive_field => ..., inactive_value => ...).', old.name);
	END IF;

	IF array_position($11, NULL) IS NOT NULL
	   OR EXISTS (SELECT FROM unnest($11) u (call) WHERE call !~ '^[[:alpha:]_]\w*(=[^=|]+(\|[^=|]+)*)?$') THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'invalid value for after_create',
			HINT = 'Write methods, as {quote,confirm}; confirm=confirmed|done verifies the state that comes of it.';
	ELSIF $11 <> '{}' AND NOT @extschema@._possync_calls(old.server) THEN
		RAISE feature_not_supported USING
			MESSAGE = format('nothing can be called at server "%s" after rows were created', old.server),
			HINT = 'Let a trigger of the table there do it.';
	END IF;

	UPDATE @extschema@.synchronize_model m
	SET name = coalesce($2, m.name),
		after_create = CASE WHEN $11 IS NULL THEN m.after_create ELSE nullif($11, '{}') END,
		on_delete = coalesce($8, m.on_delete),
		inactive_field = CASE WHEN coalesce($8, m.on_delete) = 'deactivate' THEN inactive.field END,
		inactive_value = CASE WHEN coalesce($8, m.on_delete) = 'deactivate' THEN inactive.value END,
		remote = coalesce($3, m.remote),
		on_unknown = coalesce($4, m.on_unknown),
		on_match = coalesce($5, m.on_match),
		on_conflict = coalesce($7, m.on_conflict),
		change_columns = CASE WHEN $6 IS NULL THEN m.change_columns ELSE nullif($6, '{}') END,
		reason = CASE WHEN $6 IS NULL THEN m.reason
					  ELSE format('%s; %s', split_part(m.reason, '; ', 1),
								  CASE WHEN $6 = '{}' THEN 'every row is read, asked for'
									   ELSE format('changes found by %s, asked for', array_to_string($6, ', ')) END)
				 END
	WHERE m.id = old.id
	RETURNING m.* INTO new;
	IF (old.remote, old.on_unknown, old.on_match, old.change_columns)
	   IS DISTINCT FROM (new.remote, new.on_unknown, new.on_match, new.change_columns) THEN
		DELETE FROM @extschema@.synchronize_position p WHERE p.model = old.id;
	END IF;
	RETURN format('%s (remote %s): %s%s', new.name, new.remote, @extschema@._possync_does(new.id),
				  '; changes found by ' || array_to_string(new.change_columns, ', '));
END $$;
COMMENT ON FUNCTION @extschema@.possync_set_model(text, text, text, text, text, text[], text, text, name, text, text[]) IS 'changes a model; null leaves a property as it is';

/*
 * _possync_check_match
 *		Refuses a type that rows cannot be recognised by.
 *
 * Grouping asks for the same operators as a hash or merge join does.
 */
CREATE FUNCTION @extschema@._possync_check_match(type text)
RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	EXECUTE format('SELECT DISTINCT v FROM (SELECT NULL::%s) t (v) WHERE false', type);
EXCEPTION WHEN undefined_function THEN
	RAISE datatype_mismatch USING
		MESSAGE = format('rows cannot be recognised by a column of type %s', type),
		DETAIL = 'The type has no operator that tells whether two values are equal.';
END $$;
COMMENT ON FUNCTION @extschema@._possync_check_match(text) IS 'internal: refuses a type that rows cannot be recognised by';

/*
 * _possync_check_value
 *		Refuses a fixed value that a column cannot take, with the error of its
 *		type.
 *
 * A cast cuts what is too long for character(n), an assignment does not.
 * label names the column.
 */
CREATE FUNCTION @extschema@._possync_check_value(value text, type oid, typmod integer, label text)
RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	detail text;
BEGIN
	IF type IN ('varchar'::regtype, 'bpchar'::regtype) AND typmod >= 0 AND length(value) > typmod - 4 THEN
		RAISE string_data_right_truncation USING
			MESSAGE = format('value too long for type %s', format_type(type, typmod));
	END IF;
	EXECUTE format('SELECT %L::%s', value, format_type(type, typmod));
EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RAISE USING
		ERRCODE = SQLSTATE,
		MESSAGE = format('%s cannot have this fixed value: %s', label, SQLERRM),
		DETAIL = coalesce(nullif(detail, ''), format('The value is %L.', value));
END $$;
COMMENT ON FUNCTION @extschema@._possync_check_value(text, oid, integer, text) IS 'internal: refuses a fixed value that a column cannot take';

/*
 * possync_set_field
 *		Changes a column of a model; null leaves a property as it is.
 *
 * model	the model
 * field	the local column
 * copy		whether its value is transferred (a foreign key: translated).
 *			True or false, it takes away a fixed value
 * match	whether it takes part in recognising rows.  The first match field of
 *			a model that only creates makes it match first; without the last one
 *			it only creates again
 * remote	the remote column
 * fixed	a value to store instead of the remote one
 *
 * The next pull reads every row.  Returns what is done with the column and
 * with rows of the model now.  Errors: undefined_object, undefined_column,
 * invalid_parameter_value, datatype_mismatch, insufficient_privilege, and what
 * the type says about a fixed value.
 */
CREATE FUNCTION @extschema@.possync_set_field(model text, field name, copy boolean DEFAULT NULL,
											  match boolean DEFAULT NULL, remote text DEFAULT NULL,
											  fixed text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	owner @extschema@.synchronize_model := @extschema@._possync_model($1);
	attribute pg_attribute;
	old @extschema@.synchronize_field;
	new @extschema@.synchronize_field;
	label text;
BEGIN
	IF $2 IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'field must not be null';
	END IF;
	PERFORM @extschema@._possync_check_rights(owner.relation, owner.server);
	SELECT a.* INTO attribute FROM pg_attribute a
	WHERE a.attrelid = owner.relation AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped;
	SELECT f.* INTO old FROM @extschema@.synchronize_field f WHERE f.model = owner.id AND f.name = $2;
	IF attribute.attname IS NULL OR old.name IS NULL THEN
		RAISE undefined_column USING
			MESSAGE = format('model "%s" has no field "%s"', owner.name, $2),
			HINT = CASE WHEN attribute.attname IS NOT NULL
						THEN format('The column is new: call possync_add_model(%L, server => %L) again.',
									owner.relation, owner.server)
						ELSE (SELECT coalesce(@extschema@._possync_closest($2, array_agg(f.name::text)),
											  format('SELECT * FROM possync_tree(%L) shows its fields.', owner.name))
							  FROM @extschema@.synchronize_field f WHERE f.model = owner.id) END;
	END IF;

	label := format('%s.%s', owner.name, $2);
	new := old;
	new.remote := coalesce($5, old.remote);
	new.match := coalesce($4, old.match);
	IF $3 AND $6 IS NOT NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('%s cannot be copied and have a fixed value', label),
			HINT = 'Give one of copy and fixed.';
	ELSIF $6 IS NOT NULL THEN
		new.copy := false;
		new.fixed := $6;
	ELSIF $3 IS NOT NULL THEN
		new.copy := $3;
		new.fixed := NULL;
	END IF;

	IF new.remote = '' THEN
		RAISE invalid_parameter_value USING MESSAGE = format('the remote column of %s must not be empty', label);
	ELSIF attribute.attgenerated <> '' AND (new.copy OR new.fixed IS NOT NULL) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('%s cannot be written: it is a generated column', label);
	ELSIF new.fixed IS NOT NULL AND $2 = ANY (owner.key_columns) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('%s cannot have a fixed value: it is part of the key', label);
	ELSIF new.match AND NOT new.copy AND new.fixed IS NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('%s is a match field, but neither copied nor fixed', label),
			HINT = CASE WHEN old.match THEN 'Give match => false, too.'
						WHEN $4 AND $3 = false THEN 'Give copy => true, or fixed, or do not make it a match field.'
						ELSE 'Give copy => true, too.' END;
	END IF;
	IF new.match AND NOT old.match THEN
		PERFORM @extschema@._possync_check_match(format_type(attribute.atttypid, NULL));
	END IF;
	IF $6 IS NOT NULL THEN
		PERFORM @extschema@._possync_check_value($6, attribute.atttypid, attribute.atttypmod, label);
	END IF;

	IF new IS DISTINCT FROM old THEN
		new.reason := CASE WHEN (new.copy, new.match, new.fixed) IS DISTINCT FROM (old.copy, old.match, old.fixed)
						   THEN 'asked for' ELSE old.reason END;
		UPDATE @extschema@.synchronize_field f
		SET (copy, match, remote, fixed, reason) = (SELECT new.copy, new.match, new.remote, new.fixed, new.reason)
		WHERE f.model = owner.id AND f.name = $2;
		UPDATE @extschema@.synchronize_model m
		SET on_unknown = CASE WHEN new.match AND m.on_unknown = 'create' AND NOT s.others THEN 'match_create'
							  WHEN old.match AND m.on_unknown = 'match_create' AND NOT new.match AND NOT s.others THEN 'create'
							  ELSE m.on_unknown END,
			change_columns = array_replace(m.change_columns, old.remote, new.remote),
			reason = CASE WHEN new.match = old.match THEN m.reason
						  ELSE format('recognised as asked for; %s', split_part(m.reason, '; ', 2)) END
		FROM (SELECT EXISTS (SELECT FROM @extschema@.synchronize_field f
							 WHERE f.model = owner.id AND f.name <> $2 AND f.match)) s (others)
		WHERE m.id = owner.id;
		DELETE FROM @extschema@.synchronize_position p WHERE p.model = owner.id;
		IF NOT new.copy AND new.fixed IS NULL
		   AND (SELECT c.required FROM @extschema@._possync_columns(owner.relation, owner.key_columns) c
				WHERE c.name = $2) THEN
			RAISE WARNING USING
				MESSAGE = format('%s must not be null, has no default and is not copied', label),
				DETAIL = 'No row can be created like this.',
				HINT = CASE WHEN $2 = ANY (owner.key_columns)
							THEN format('Give it a default again, or copy it: possync_set_field(%L, %L, copy => true).', owner.name, $2)
							ELSE format('Give it a value: possync_set_field(%L, %L, fixed => ...).', owner.name, $2) END;
		END IF;
		IF new.copy AND NOT old.copy AND $2 = ANY (owner.key_columns)
		   AND NOT (SELECT c.copy FROM @extschema@._possync_columns(owner.relation, owner.key_columns) c
					WHERE c.name = $2) THEN
			RAISE WARNING USING
				MESSAGE = format('%s is copied, and numbered here, too', label),
				DETAIL = 'A row that is made here may get the key of one that is still to come from the remote.',
				HINT = 'Let no rows be made here, or keep the numbers apart.';
		END IF;
	END IF;
	RETURN format('%s%s: %s (%s: %s)', label, ' (remote ' || nullif(new.remote, $2) || ')',
				  @extschema@._possync_does(owner.id, $2), owner.name, @extschema@._possync_does(owner.id));
END $$;
COMMENT ON FUNCTION @extschema@.possync_set_field(text, name, boolean, boolean, text, text) IS 'changes a column of a model; null leaves a property as it is';

/*
 * possync_tree
 *		The tree of a model to read: below each model its columns, then what it
 *		refers to (->) and the children that belong to it (<-).
 *
 * fields: false leaves out the columns.  A model stands there in full once;
 * where it comes again it is named only.  Children are followed from the model
 * and its children, not from what they refer to.  Errors: undefined_object.
 */
CREATE FUNCTION @extschema@.possync_tree(model text, fields boolean DEFAULT true)
RETURNS TABLE (tree text, remote text, does text, reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	root @extschema@.synchronize_model := @extschema@._possync_model($1);
	shown smallint[] := '{}';
	children smallint[];			/* all below the root */
	/* The lines still to come, the next one last. */
	ids smallint[] := ARRAY[root.id];
	paths text[] := ARRAY['/'];		/* ids above it: /1/2/ */
	arrows text[] := ARRAY[''];
	keys text[] := ARRAY[NULL::text];
	n integer := 1;
	current @extschema@.synchronize_model;
	path text;
	arrow text;
	indent integer;
	in_full boolean;
	gone boolean;
	branch record;
BEGIN
	WITH RECURSIVE below (id) AS (
		SELECT c.child FROM @extschema@.synchronize_child c WHERE c.model = root.id
		UNION
		SELECT c.child FROM below b JOIN @extschema@.synchronize_child c ON c.model = b.id)
	SELECT coalesce(array_agg(b.id), '{}') INTO children FROM below b;

	WHILE n > 0 LOOP
		SELECT m.* INTO current FROM @extschema@.synchronize_model m WHERE m.id = ids[n];
		path := paths[n];
		arrow := arrows[n];
		/* A child is described where it belongs. */
		in_full := current.id <> ALL (shown) AND (arrow <> '->' OR current.id <> ALL (children));
		gone := NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = current.relation);
		indent := 4 * (length(path) - length(replace(path, '/', '')) - 1);
		tree := CASE WHEN indent = 0 THEN current.name
					 ELSE repeat(' ', indent - 3) || arrow || ' ' || current.name END;
		IF in_full THEN
			remote := current.remote;
			does := @extschema@._possync_does(current.id);
			reason := concat_ws('; ', 'by ' || keys[n],
								CASE WHEN gone THEN 'the table is no longer there: remove the model with possync_remove_model'
									 ELSE current.reason END);
		ELSE
			tree := tree || CASE WHEN path LIKE '%/' || current.id || '/' THEN ' (itself)'
								 WHEN path LIKE '%/' || current.id || '/%' THEN ' (cycle, see above)'
								 WHEN current.id <> ALL (shown) THEN ' (see below)'
								 ELSE ' (see above)' END;
			remote := NULL;
			does := NULL;
			reason := 'by ' || keys[n];
		END IF;
		n := n - 1;
		RETURN NEXT;

		IF in_full AND fields AND NOT gone THEN
			RETURN QUERY
			SELECT repeat(' ', indent + 2) || f.name, f.remote, @extschema@._possync_does(f.model, f.name),
				   CASE WHEN a.attname IS NULL THEN 'the column is no longer there' ELSE f.reason END
			FROM @extschema@.synchronize_field f
			LEFT JOIN pg_attribute a ON a.attrelid = current.relation AND a.attname = f.name AND NOT a.attisdropped
			WHERE f.model = current.id
			ORDER BY a.attnum, f.name;
		END IF;

		/*
		 * What it refers to comes first, hence last here.  That a child refers
		 * to its parent needs no line of its own.
		 */
		FOR branch IN
			SELECT 1 AS rank, '<-' AS arrow, c.child AS id, m.name COLLATE "C" AS name, 0 AS first_column,
				   (SELECT array_to_string(r.columns, ', ') FROM @extschema@.possync_reference r
					WHERE r.model_id = c.child AND r.referenced_id = current.id
					ORDER BY r.first_column, r.columns LIMIT 1) AS key
			FROM @extschema@.synchronize_child c JOIN @extschema@.synchronize_model m ON m.id = c.child
			WHERE c.model = current.id AND in_full AND arrow <> '->'
			UNION ALL
			SELECT 0, '->', r.referenced_id, NULL, min(r.first_column),
				   string_agg(array_to_string(r.columns, ', '), '; by ' ORDER BY r.first_column, r.columns)
			FROM @extschema@.possync_reference r
			WHERE r.model_id = current.id AND in_full
			  AND NOT (arrow = '<-' AND path LIKE '%/' || r.referenced_id || '/')
			GROUP BY r.referenced_id
			ORDER BY rank DESC, name DESC, first_column DESC, id DESC
		LOOP
			n := n + 1;
			ids[n] := branch.id;
			paths[n] := path || current.id || '/';
			arrows[n] := branch.arrow;
			keys[n] := branch.key;
		END LOOP;
		IF in_full THEN
			shown := shown || current.id;
		END IF;
	END LOOP;
END $$;
COMMENT ON FUNCTION @extschema@.possync_tree(text, boolean) IS 'the tree of a model to read: columns, what it refers to (->) and its children (<-)';

/* --- engine entry points --- */
CREATE FUNCTION @extschema@.possync_pull(model text, dry_run boolean DEFAULT false, on_error text DEFAULT 'report',
										 "full" boolean DEFAULT false, compare boolean DEFAULT false)
RETURNS @extschema@.synchronize_history
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION @extschema@.possync_pull(text, boolean, text, boolean, boolean) IS 'reads the tree of a model from its server and applies what changed there; returns the run''s row of synchronize_history';

CREATE FUNCTION @extschema@.possync_push(model text, on_error text DEFAULT 'report')
RETURNS @extschema@.synchronize_history
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION @extschema@.possync_push(text, text) IS 'sends what is queued for the server of a model, and waits for it; returns the run''s row of synchronize_history';

/* --- queue --- */
CREATE FUNCTION @extschema@.possync_capture() RETURNS trigger
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION @extschema@.possync_capture() IS 'trigger of queued tables, made by possync_queue: queues the row for pushing';

/* What backends know about capturing they find out anew when models change. */
CREATE FUNCTION @extschema@._possync_forget_captures() RETURNS trigger
AS 'MODULE_PATHNAME', 'possync_forget_captures' LANGUAGE C;
COMMENT ON FUNCTION @extschema@._possync_forget_captures() IS 'internal: tells all backends that models have changed';

CREATE TRIGGER synchronize_captures AFTER UPDATE OR DELETE OR TRUNCATE ON @extschema@.synchronize_model
	EXECUTE FUNCTION @extschema@._possync_forget_captures();

/*
 * possync_refuse_truncate
 *		Trigger of queued tables: TRUNCATE tells nobody which rows are gone.
 */
CREATE FUNCTION @extschema@.possync_refuse_truncate() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RAISE feature_not_supported USING
		MESSAGE = format('table %s is queued for pushing and cannot be truncated', TG_RELID::regclass),
		HINT = 'Use DELETE, or stop queuing it with possync_unqueue.';
END $$;
COMMENT ON FUNCTION @extschema@.possync_refuse_truncate() IS 'trigger of queued tables, made by possync_queue: TRUNCATE cannot be pushed';

/*
 * _possync_queued
 *		The models whose changes are queued with a root: itself and its children.
 */
CREATE FUNCTION @extschema@._possync_queued(root smallint)
RETURNS TABLE (id smallint, relation regclass) LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	WITH RECURSIVE below AS (
		SELECT root AS id
		UNION
		SELECT c.child FROM below b JOIN @extschema@.synchronize_child c ON c.model = b.id)
	SELECT m.id, m.relation FROM below JOIN @extschema@.synchronize_model m USING (id)
$$;
COMMENT ON FUNCTION @extschema@._possync_queued(smallint) IS 'internal: the models whose changes are queued with a root';

/*
 * possync_queue(model, operations)
 *		From now on every committed change of the model's table and its
 *		children's waits for being pushed.
 *
 * operations		which changes: some of insert, update and delete
 *
 * What they refer to (a customer, a product) is sent with them when the master
 * does not have it.  Errors: as CREATE TRIGGER, invalid_parameter_value.
 * Returns the tables that are queued.  May be called again, with other
 * operations, or after a child or a partition was added: the partition is
 * queued by itself, but only then refuses TRUNCATE.
 */
CREATE FUNCTION @extschema@.possync_queue(model text, operations text[] DEFAULT '{insert,update,delete}')
RETURNS SETOF regclass LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	queued record;
	other record;
	relation regclass;
BEGIN
	IF operations IS NULL OR operations = '{}' OR NOT operations <@ '{insert,update,delete}' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid value for operations: %s', coalesce(operations::text, 'null')),
			HINT = 'Choose some of insert, update and delete, as in ''{insert,update}''.';
	END IF;
	FOR queued IN SELECT q.* FROM @extschema@._possync_model(model) m, @extschema@._possync_queued(m.id) q
	LOOP
		PERFORM @extschema@._possync_check_rights(queued.relation, (SELECT server FROM @extschema@.synchronize_model WHERE id = queued.id));
		-- another trigger of that name would silently take its place
		SELECT o.name INTO other FROM pg_trigger t JOIN @extschema@.synchronize_model o
			ON o.id::text = split_part(encode(t.tgargs, 'escape'), '\000', 1)
			WHERE t.tgrelid = queued.relation AND t.tgname = 'possync_queue' AND o.id <> queued.id;
		IF FOUND THEN
			RAISE EXCEPTION 'table % is queued for model "%" already', queued.relation, other.name
				USING ERRCODE = 'object_in_use', DETAIL = 'A table can be queued for one server.',
					  HINT = format('Stop that first with possync_unqueue(%L).', other.name);
		END IF;
		EXECUTE format('CREATE OR REPLACE TRIGGER possync_queue AFTER %s ON %s'
					   ' FOR EACH ROW EXECUTE FUNCTION @extschema@.possync_capture(%s)',
					   array_to_string(ARRAY(SELECT DISTINCT o.* FROM unnest(operations) o), ' OR '),
					   queued.relation, queued.id);
		EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER possync_queue', queued.relation);
		FOREACH relation IN ARRAY queued.relation || ARRAY(SELECT t.relid FROM pg_partition_tree(queued.relation) t WHERE t.level > 0)
		LOOP
			EXECUTE format('CREATE OR REPLACE TRIGGER possync_queue_truncate BEFORE TRUNCATE ON %s'
						   ' EXECUTE FUNCTION @extschema@.possync_refuse_truncate()', relation);
			EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER possync_queue_truncate', relation);
		END LOOP;
		RETURN NEXT queued.relation;
	END LOOP;
END $$;
COMMENT ON FUNCTION @extschema@.possync_queue(text, text[]) IS 'queues every committed change of a model and its children for pushing; returns the tables';

/*
 * possync_unqueue(model)
 *		Stops queuing.  What is queued already stays and is still pushed.
 *		Returns the tables concerned.
 */
CREATE FUNCTION @extschema@.possync_unqueue(model text)
RETURNS SETOF regclass LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	queued record;
	relation regclass;
BEGIN
	FOR queued IN SELECT q.* FROM @extschema@._possync_model(model) m, @extschema@._possync_queued(m.id) q
	LOOP
		EXECUTE format('DROP TRIGGER IF EXISTS possync_queue ON %s', queued.relation);
		FOREACH relation IN ARRAY queued.relation || ARRAY(SELECT t.relid FROM pg_partition_tree(queued.relation) t WHERE t.level > 0)
		LOOP
			EXECUTE format('DROP TRIGGER IF EXISTS possync_queue_truncate ON %s', relation);
		END LOOP;
		RETURN NEXT queued.relation;
	END LOOP;
END $$;
COMMENT ON FUNCTION @extschema@.possync_unqueue(text) IS 'stops queuing the changes of a model and its children; returns the tables';

/* --- schedule --- */
CREATE FUNCTION @extschema@._possync_wake() RETURNS trigger
AS 'MODULE_PATHNAME', 'possync_wake' LANGUAGE C;
COMMENT ON FUNCTION @extschema@._possync_wake() IS 'internal: lets scheduled jobs see changed configuration';

CREATE TRIGGER synchronize_wake AFTER INSERT OR UPDATE OF owner, every, jitter, paused, home OR DELETE OR TRUNCATE ON @extschema@.synchronize_schedule
	EXECUTE FUNCTION @extschema@._possync_wake();
CREATE TRIGGER synchronize_wake AFTER UPDATE OR DELETE OR TRUNCATE ON @extschema@.synchronize_model
	EXECUTE FUNCTION @extschema@._possync_wake();
CREATE TRIGGER synchronize_wake AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.synchronize_field
	EXECUTE FUNCTION @extschema@._possync_wake();

CREATE FUNCTION @extschema@.possync_processes(OUT pid integer, OUT kind text, OUT database oid, OUT role oid, OUT server oid, OUT direction text)
RETURNS SETOF record
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION @extschema@.possync_processes() IS 'the processes that run what is scheduled, of all databases; none if possync is not in shared_preload_libraries';

CREATE FUNCTION @extschema@._possync_is_preloaded() RETURNS boolean
AS 'MODULE_PATHNAME', 'possync_is_preloaded' LANGUAGE C;
COMMENT ON FUNCTION @extschema@._possync_is_preloaded() IS 'internal: whether possync is in shared_preload_libraries';

/*
 * _possync_check_direction
 *		Refuses what is no direction.
 */
CREATE FUNCTION @extschema@._possync_check_direction(direction text)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF direction IS NULL OR direction NOT IN ('pull', 'push') THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid direction: %s', coalesce(quote_ident(direction), 'null')),
			HINT = 'It is pull or push.';
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@._possync_check_direction(text) IS 'internal: refuses what is no direction';

/*
 * possync_schedule
 *		Lets the tree of a model be pulled, or pushed, by itself.
 *
 * model		the model
 * direction	pull or push
 * every		how often; a push also runs as soon as something is queued.
 *				At least a second, and no months, which differ
 * jitter		how much earlier or later chance lets it run; a tenth of every
 *				if null
 *
 * Runs as the current user, at once for the first time.  What is scheduled
 * already gets these times.  Errors: undefined_object,
 * invalid_parameter_value, insufficient_privilege.  Warns if nothing will run
 * because possync is not preloaded.
 */
CREATE FUNCTION @extschema@.possync_schedule(model text, direction text, every interval DEFAULT '1 minute', jitter interval DEFAULT NULL)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	old @extschema@.synchronize_model := @extschema@._possync_model($1);
BEGIN
	PERFORM @extschema@._possync_check_rights(old.relation, old.server);
	PERFORM @extschema@._possync_check_direction($2);
	IF $3 IS NULL OR $3 < '1 second' OR extract(month FROM $3) <> 0 OR extract(year FROM $3) <> 0 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid value for every: %s', coalesce($3::text, 'null')),
			HINT = 'It is a second or more, and has no months or years.';
	ELSIF $4 < '0' OR $4 > $3 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('invalid value for jitter: %s', $4),
			HINT = 'It is not negative and not more than every.';
	ELSIF NOT (SELECT rolcanlogin FROM pg_roles WHERE rolname = current_user) THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('role "%s" cannot run jobs: it is not permitted to log in', current_user),
			HINT = 'Schedule them as a role that is.';
	END IF;
	INSERT INTO @extschema@.synchronize_schedule AS s (model, direction, owner, every, jitter)
	VALUES (old.id, $2, current_user::regrole, $3, coalesce($4, $3 / 10))
	ON CONFLICT (model, direction) DO UPDATE
	SET owner = EXCLUDED.owner, every = EXCLUDED.every, jitter = EXCLUDED.jitter,
		home = EXCLUDED.home, next_run = now();
	IF NOT @extschema@._possync_is_preloaded() THEN
		RAISE WARNING 'nothing runs by itself yet: possync is not preloaded'
			USING HINT = 'Add possync to shared_preload_libraries and restart the server.';
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@.possync_schedule(text, text, interval, interval) IS 'lets the tree of a model be pulled or pushed by itself, as the current user';

/*
 * possync_unschedule
 *		Ends that.
 *
 * model		the model
 * direction	pull or push; null means both
 *
 * A run that has begun is not cut off.  Errors: undefined_object,
 * insufficient_privilege.
 */
CREATE FUNCTION @extschema@.possync_unschedule(model text, direction text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	old @extschema@.synchronize_model := @extschema@._possync_model($1);
BEGIN
	PERFORM @extschema@._possync_check_rights(old.relation, old.server, removing => true);
	IF $2 IS NOT NULL THEN
		PERFORM @extschema@._possync_check_direction($2);
	END IF;
	DELETE FROM @extschema@.synchronize_schedule s
	WHERE s.model = old.id AND s.direction = coalesce($2, s.direction);
	IF NOT FOUND THEN
		RAISE undefined_object USING MESSAGE = format('no %s of model "%s" is scheduled', coalesce($2, 'run'), old.name);
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@.possync_unschedule(text, text) IS 'does not let the tree of a model be pulled or pushed by itself any more';

/*
 * _possync_set_paused
 *		Pauses the jobs of a model or of a server, or lets them go on.
 */
CREATE FUNCTION @extschema@._possync_set_paused(model text, direction text, server name, paused boolean)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	job record;
	found boolean := false;
	here text := @extschema@._possync_home();
BEGIN
	IF ($1 IS NULL) = ($3 IS NULL) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'either a model or a server must be given';
	ELSIF $1 IS NOT NULL THEN
		PERFORM @extschema@._possync_model($1);
	END IF;
	IF $2 IS NOT NULL THEN
		PERFORM @extschema@._possync_check_direction($2);
	END IF;
	FOR job IN
		SELECT s.model, s.direction, m.relation, m.server FROM @extschema@.synchronize_schedule s
		JOIN @extschema@.synchronize_model m ON m.id = s.model
		WHERE (m.name = $1 OR m.server = $3) AND s.direction = coalesce($2, s.direction)
	LOOP
		PERFORM @extschema@._possync_check_rights(job.relation, job.server, removing => true);
		UPDATE @extschema@.synchronize_schedule s
		SET paused = $4, home = CASE WHEN $4 THEN s.home ELSE here END, next_run = now()
		WHERE s.model = job.model AND s.direction = job.direction
			AND (s.paused <> $4 OR NOT $4 AND s.home <> here);
		found := true;
	END LOOP;
	IF NOT found THEN
		RAISE undefined_object USING
			MESSAGE = format('nothing is scheduled for %s', coalesce(format('model "%s"', $1), format('server "%s"', $3)));
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@._possync_set_paused(text, text, name, boolean) IS 'internal: pauses jobs, or lets them go on';

/*
 * possync_pause, possync_resume
 *		Pauses the jobs of a model or of a whole server; lets them go on.
 *
 * model		the model, or null
 * direction	pull or push; null means both
 * server		the server, if no model is given
 *
 * A run that has begun is not cut off.  Jobs that came here with a copy of their
 * database, or with its dump, are resumed, too, and from then on belong here.
 * Errors: undefined_object, invalid_parameter_value, insufficient_privilege.
 */
CREATE FUNCTION @extschema@.possync_pause(model text DEFAULT NULL, direction text DEFAULT NULL, server name DEFAULT NULL)
RETURNS void LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT @extschema@._possync_set_paused(model, direction, server, true) $$;
COMMENT ON FUNCTION @extschema@.possync_pause(text, text, name) IS 'lets the scheduled jobs of a model or a server rest';

CREATE FUNCTION @extschema@.possync_resume(model text DEFAULT NULL, direction text DEFAULT NULL, server name DEFAULT NULL)
RETURNS void LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT @extschema@._possync_set_paused(model, direction, server, false) $$;
COMMENT ON FUNCTION @extschema@.possync_resume(text, text, name) IS 'lets jobs of a model or a server go on that were paused, or copied with their database';

/*
 * possync_reset_counters
 *		Lets possync_counters of a model begin anew.
 */
CREATE FUNCTION @extschema@.possync_reset_counters(model text)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	old @extschema@.synchronize_model := @extschema@._possync_model($1);
BEGIN
	PERFORM @extschema@._possync_check_rights(old.relation, old.server, removing => true);
	DELETE FROM @extschema@.synchronize_counter c WHERE c.model = old.name AND c.server = old.server;
	INSERT INTO @extschema@.synchronize_counter (model, server, direction, since)
	SELECT old.name, old.server, d, clock_timestamp() FROM unnest('{pull,push}'::text[]) d;
END $$;
COMMENT ON FUNCTION @extschema@.possync_reset_counters(text) IS 'lets the counters of a model begin anew';

/* --- change log --- */
CREATE FUNCTION @extschema@.possync_log_change() RETURNS trigger
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION @extschema@.possync_log_change() IS 'trigger of logged tables, made by possync_log: notes the key of the row';

/*
 * possync_log
 *		Keeps a log of a table's changes, at a master, for any number of tills:
 *		they find what was changed and deleted since they read it, at once and
 *		exactly, whether it has a change column or not.
 *
 * relation		the table
 * key			the columns that tills know its rows by; the primary key if null
 *
 * For the owner of the table.  Tills see the log if they may read the table and
 * have USAGE on the schema of possync.  Errors: insufficient_privilege,
 * undefined_column, invalid_table_definition.
 */
CREATE FUNCTION @extschema@.possync_log(relation regclass, key name[] DEFAULT NULL)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	root pg_class;
	columns name[] := $2;
	missing name;
	part regclass;
	arguments text;
BEGIN
	SELECT * INTO root FROM pg_class c WHERE c.oid = $1;
	IF NOT pg_has_role(root.relowner, 'USAGE') THEN
		RAISE insufficient_privilege USING MESSAGE = format('must be owner of table %s', $1);
	ELSIF root.relkind NOT IN ('r', 'p') OR root.relispartition OR root.relpersistence = 't' THEN
		RAISE invalid_table_definition USING
			MESSAGE = format('%s cannot be logged', $1),
			DETAIL = 'Only ordinary tables and whole partitioned tables can.';
	END IF;
	IF columns IS NULL THEN
		SELECT array_agg(a.attname ORDER BY k.n) INTO columns
		FROM pg_constraint c CROSS JOIN unnest(c.conkey) WITH ORDINALITY k (attnum, n)
		JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
		WHERE c.conrelid = $1 AND c.contype = 'p';
	END IF;
	IF coalesce(cardinality(columns), 0) = 0 THEN
		RAISE invalid_table_definition USING
			MESSAGE = format('table %s has no primary key', $1),
			HINT = 'Name the columns that tills know its rows by: possync_log(table, key => ...).';
	END IF;
	SELECT k INTO missing FROM unnest(columns) k
	WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = $1 AND a.attname = k AND a.attnum > 0 AND NOT a.attisdropped);
	IF FOUND THEN
		RAISE undefined_column USING MESSAGE = format('column "%s" of table %s does not exist', missing, $1);
	END IF;
	SELECT string_agg(quote_literal(k), ', ' ORDER BY n) INTO arguments FROM unnest(columns) WITH ORDINALITY u (k, n);
	EXECUTE format('CREATE OR REPLACE TRIGGER possync_log AFTER INSERT OR UPDATE OR DELETE ON %s
					FOR EACH ROW EXECUTE FUNCTION @extschema@.possync_log_change(%s)', $1, arguments);
	FOR part IN SELECT coalesce(t.relid, $1) FROM (VALUES (1)) v LEFT JOIN pg_partition_tree($1) t ON true LOOP
		EXECUTE format('CREATE OR REPLACE TRIGGER possync_log_truncate AFTER TRUNCATE ON %s
						FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.possync_log_change(%s)', part, arguments);
	END LOOP;
END $$;
COMMENT ON FUNCTION @extschema@.possync_log(regclass, name[]) IS 'keeps a log of a table''s changes, at a master, for any number of tills';

/*
 * possync_unlog
 *		Keeps it no longer.
 *
 * relation		the table
 *
 * Tills go back to what they did before, at the latest when they sweep.  Errors:
 * undefined_object, insufficient_privilege.
 */
CREATE FUNCTION @extschema@.possync_unlog(relation regclass)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	part regclass;
	found boolean := false;
BEGIN
	IF NOT pg_has_role((SELECT c.relowner FROM pg_class c WHERE c.oid = $1), 'USAGE') THEN
		RAISE insufficient_privilege USING MESSAGE = format('must be owner of table %s', $1);
	END IF;
	FOR part IN SELECT coalesce(t.relid, $1) FROM (VALUES (1)) v LEFT JOIN pg_partition_tree($1) t ON true LOOP
		found := found OR EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = part AND g.tgname = 'possync_log');
		EXECUTE format('DROP TRIGGER IF EXISTS possync_log_truncate ON %s', part);
	END LOOP;
	IF NOT found THEN
		RAISE undefined_object USING MESSAGE = format('table %s is not logged', $1);
	END IF;
	EXECUTE format('DROP TRIGGER possync_log ON %s', $1);
END $$;
COMMENT ON FUNCTION @extschema@.possync_unlog(regclass) IS 'keeps no log of a table''s changes any longer';

/* --- drift --- */

/*
 * possync_compare
 *		What differs between the rows of a tree here and at its server, found with
 *		little traffic: by sums of hashes, then hashes, then columns.
 *
 * model		the root
 * direction	pull: all rows of both sides; push: rows of ours, as others send
 *				theirs; null: push for queued models, pull for all others
 * condition	SQL about columns of the root model, p: only those rows, and their
 *				children, are compared; as in $$p.sold_at >= current_date$$
 *
 * Changes nothing.  difference is one of: different, with the fields that are;
 * missing here; missing there (linked, and the remote row is gone); lost here
 * (linked, and the row here is gone); not sent (of a queued model, and nothing is
 * linked with it).  queued: a change of it waits to be pushed.  Errors: as those
 * of a pull.
 */
CREATE FUNCTION @extschema@.possync_compare(model text, direction text DEFAULT NULL, condition text DEFAULT NULL)
RETURNS TABLE (model_name text, relation regclass, synchronized_by text, local_key text, remote_key text,
			   difference text, fields jsonb, queued boolean)
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION @extschema@.possync_compare(text, text, text) IS 'what differs between the rows of a tree here and at its server';

/*
 * possync_control
 *		Numbers of rows and sums on both sides, as at the end of a day.
 *
 * model, direction, condition	as for possync_compare
 *
 * measure is rows, or a column with integers or numerics that is copied.  For rows
 * that make them unequal ask possync_compare with the same arguments.  Errors: as
 * those of a pull.
 */
CREATE FUNCTION @extschema@.possync_control(model text, direction text DEFAULT NULL, condition text DEFAULT NULL)
RETURNS TABLE (model_name text, relation regclass, measure text, here numeric, there numeric, equal boolean)
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION @extschema@.possync_control(text, text, text) IS 'numbers of rows and sums of a tree here and at its server';

CREATE FUNCTION @extschema@._possync_resend(model text, local_key text, anew boolean) RETURNS boolean
AS 'MODULE_PATHNAME', 'possync_resend' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@._possync_resend(text, text, boolean) IS 'internal: queues a row again, as it is';

/*
 * _possync_mends
 *		What possync_repair does about a difference, in words; null: nothing.
 */
CREATE FUNCTION @extschema@._possync_mends(model text, synchronized_by text, difference text, queued boolean)
RETURNS text LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN $4 THEN NULL
				WHEN $2 = 'push' THEN
					CASE $3 WHEN 'different' THEN 'sent again' WHEN 'missing there' THEN 'sent as new'
							WHEN 'not sent' THEN 'sent as new' END
				WHEN $3 <> 'missing there' THEN 'read again'
				WHEN m.on_delete = 'delete' THEN 'deleted here'
				WHEN m.on_delete = 'deactivate' THEN format('%I = %L here', m.inactive_field, m.inactive_value) END
	FROM @extschema@.synchronize_model m WHERE m.name = $1
$$;
COMMENT ON FUNCTION @extschema@._possync_mends(text, text, text, boolean) IS 'internal: what possync_repair does about a difference';

/*
 * possync_repair
 *		Mends what possync_compare finds, in the direction of each model.
 *
 * model, direction, condition	as for possync_compare
 * dry_run		only tell what would be done
 *
 * What is pulled is read again, and deleted as its model's on_delete says,
 * however much that is; a condition does not limit that.  What is pushed is
 * queued again, for the next push; what the remote has lost is sent as new, under
 * a new key unless it is recognised there.  action is null where nothing is done:
 * a change waits to be pushed, on_delete says ignore, or nobody can tell who is
 * right.  Errors: as those of a pull; insufficient_privilege.
 */
CREATE FUNCTION @extschema@.possync_repair(model text, direction text DEFAULT NULL, condition text DEFAULT NULL,
										   dry_run boolean DEFAULT true)
RETURNS TABLE (model_name text, relation regclass, local_key text, remote_key text, difference text,
			   fields jsonb, action text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	found record;
	pulled boolean := false;
BEGIN
	FOR found IN
		SELECT c.*, @extschema@._possync_mends(c.model_name, c.synchronized_by, c.difference, c.queued) AS action
		FROM @extschema@.possync_compare($1, $2, $3) c
	LOOP
		IF found.action IS NOT NULL AND NOT $4 AND found.synchronized_by = 'push' THEN
			PERFORM @extschema@._possync_resend(found.model_name, found.local_key, found.difference <> 'different');
		ELSIF found.action IS NOT NULL THEN
			pulled := true;
		END IF;
		RETURN QUERY SELECT found.model_name, found.relation, found.local_key, found.remote_key, found.difference,
							found.fields, found.action;
	END LOOP;
	IF pulled AND NOT $4 THEN
		PERFORM @extschema@.possync_pull($1, on_error => 'raise', compare => true);
	END IF;
END $$;
COMMENT ON FUNCTION @extschema@.possync_repair(text, text, text, boolean) IS 'mends what differs between both sides, or, in a dry run, tells how';

/* --- quarantine --- */
CREATE FUNCTION @extschema@.possync_retry(id bigint) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_retry(bigint) IS 'lets the next run try an entry of synchronize_quarantine again';

CREATE FUNCTION @extschema@.possync_resolve(id bigint, candidate text) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_resolve(bigint, text) IS 'says which of the candidates of an ambiguous entry of synchronize_quarantine is meant; remembered as a translation';

CREATE FUNCTION @extschema@.possync_discard(id bigint, because text) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_discard(bigint, text) IS 'gives an entry of synchronize_quarantine up, for a reason that is kept with it';

CREATE FUNCTION @extschema@.possync_explain(relation regclass, key text)
RETURNS TABLE (server name, remote_key text, run integer, at timestamptz, explanation text)
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_explain(regclass, text) IS 'tells where a row came from, its remote key, and what waits for it';

-- Rows that were left out, for the owners of their tables.
CREATE VIEW @extschema@.possync_quarantine WITH (security_barrier) AS
	SELECT q.id, m.name AS model, m.relation, m.server, q.direction,
		   q.remote_key, q.local_key, q.reason, q.message, q.sqlstate, q.detail,
		   q.candidates, q.row_image, q.run, q.since, q.attempts, q.retry_at,
		   q.discarded_at, q.discarded_by, q.discarded_because
	FROM @extschema@.synchronize_quarantine q
	JOIN @extschema@.synchronize_model m ON m.id = q.model
	JOIN pg_catalog.pg_class c ON c.oid = m.relation
	WHERE pg_catalog.pg_has_role(c.relowner, 'USAGE');
COMMENT ON VIEW @extschema@.possync_quarantine IS 'rows of the current user''s tables that were left out, and why';
GRANT SELECT ON @extschema@.possync_quarantine TO PUBLIC;

-- What waits to be pushed.  Everybody may know how much it is.
CREATE VIEW @extschema@.possync_queue_depth AS
	SELECT m.server, m.name AS model, count(*) AS entries,
		   count(h.txid) AS held, min(q.queued_at) AS oldest
	FROM @extschema@.synchronize_queue q
	JOIN @extschema@.synchronize_model m ON m.id = q.model
	LEFT JOIN @extschema@.synchronize_held h ON h.txid = q.txid AND h.id = q.id
	GROUP BY m.server, m.name;
COMMENT ON VIEW @extschema@.possync_queue_depth IS 'how many changes of each model wait to be pushed, how many of them are held back, and since when';
GRANT SELECT ON @extschema@.possync_queue_depth TO PUBLIC;

-- Sums over all runs of every tree.
CREATE VIEW @extschema@.possync_counters AS
	SELECT server, model, direction, min(since) AS since, sum(runs)::bigint AS runs,
		   sum(failures)::bigint AS failures, sum(rows_read)::bigint AS rows_read,
		   sum(rows_created)::bigint AS rows_created, sum(rows_updated)::bigint AS rows_updated,
		   sum(rows_deleted)::bigint AS rows_deleted, sum(rows_left_out)::bigint AS rows_left_out, sum(bytes_received)::bigint AS bytes_received
	FROM (SELECT c.server, c.model, c.direction, c.since, c.runs, c.failures, c.rows_read, c.rows_created,
				 c.rows_updated, c.rows_deleted, c.rows_left_out, c.bytes_received
		  FROM @extschema@.synchronize_counter c
		  UNION ALL
		  SELECT h.server, h.model, h.direction, min(h.started_at), sum(h.runs),
				 coalesce(sum(h.runs) FILTER (WHERE h.status IN ('failed', 'interrupted')), 0), sum(h.rows_read), sum(h.rows_created),
				 sum(h.rows_updated), sum(h.rows_deleted), sum(h.rows_left_out), sum(h.bytes_received)
		  FROM @extschema@.synchronize_history h
		  LEFT JOIN @extschema@.synchronize_counter c USING (model, server, direction)
		  WHERE h.status <> 'running' AND (c.since IS NULL OR h.started_at >= c.since)
		  GROUP BY 1, 2, 3) counted
	GROUP BY server, model, direction;
COMMENT ON VIEW @extschema@.possync_counters IS 'sums over all runs of every tree, since they were reset or since the first';
GRANT SELECT ON @extschema@.possync_counters TO PUBLIC;

-- How every tree is doing, scheduled or not.  What an error quotes is for the
-- owners of the tables.
CREATE VIEW @extschema@.possync_status WITH (security_barrier) AS
	SELECT m.server, m.name AS model, d.direction,
		   CASE WHEN s.model IS NULL THEN 'not scheduled'
				WHEN s.paused THEN 'paused'
				WHEN s.home <> (SELECT @extschema@._possync_home()) THEN 'copied'
				WHEN NOT @extschema@._possync_is_preloaded() THEN 'not preloaded'
				WHEN s.started_at IS NOT NULL THEN 'running'
				WHEN s.failures = 0 THEN 'waiting'
				WHEN s.permanent THEN 'failing'
				ELSE 'retrying' END AS state,
		   complete.position AS complete_up_to,
		   CASE d.direction WHEN 'pull'
				THEN pg_catalog.clock_timestamp() + complete.clock_offset - complete.position
				ELSE pg_catalog.clock_timestamp() - queue.oldest END AS lag,
		   CASE d.direction WHEN 'push' THEN coalesce(queue.entries, 0) END AS queued,
		   CASE d.direction WHEN 'push' THEN coalesce(queue.held, 0) END AS held,
		   queue.oldest AS oldest_queued,
		   coalesce(s.succeeded_at, complete.finished_at) AS last_success,
		   s.every, CASE WHEN NOT s.paused AND s.home = (SELECT @extschema@._possync_home()) THEN s.next_run END AS next_run,
		   coalesce(s.failures, CASE WHEN last.status = 'failed' THEN 1 ELSE 0 END) AS failures,
		   CASE WHEN s.model IS NOT NULL THEN s.sqlstate ELSE last.sqlstate END AS sqlstate,
		   CASE WHEN pg_catalog.pg_has_role(c.relowner, 'USAGE') THEN
				CASE WHEN s.model IS NOT NULL THEN s.error ELSE last.error END END AS last_error,
		   s.owner, complete.clock_offset,
		   (SELECT e.value FROM pg_catalog.jsonb_each(complete.models) t
			CROSS JOIN LATERAL (SELECT t.value ->> 'exact_by') e (value)
			WHERE d.direction = 'pull' AND e.value IS NOT NULL
			ORDER BY pg_catalog.array_position('{overlap,running transactions,comparison,log}'::text[], e.value) LIMIT 1) AS exact_by
	FROM @extschema@.synchronize_model m
	CROSS JOIN (VALUES ('pull'), ('push')) d (direction)
	LEFT JOIN pg_catalog.pg_class c ON c.oid = m.relation
	LEFT JOIN @extschema@.synchronize_schedule s ON s.model = m.id AND s.direction = d.direction
	LEFT JOIN LATERAL
		(SELECT h.id, h.position, h.clock_offset, h.finished_at, h.models FROM @extschema@.synchronize_history h
		 WHERE h.server = m.server AND h.model = m.name AND h.direction = d.direction AND h.status = 'ok'
		 ORDER BY -h.id LIMIT 1) complete ON true
	LEFT JOIN LATERAL
		(SELECT h.id, h.status, h.sqlstate, h.error FROM @extschema@.synchronize_history h
		 WHERE h.server = m.server AND h.model = m.name AND h.direction = d.direction
		 ORDER BY h.status = 'ok', -h.id LIMIT 1) trouble ON true
	LEFT JOIN LATERAL
		(SELECT trouble.status, trouble.sqlstate, trouble.error
		 WHERE trouble.id > coalesce(complete.id, 0)) last ON true
	LEFT JOIN
		(SELECT q.server, sum(q.entries) AS entries, sum(q.held) AS held, min(q.oldest) AS oldest
		 FROM @extschema@.possync_queue_depth q
		 GROUP BY q.server) queue ON queue.server = m.server AND d.direction = 'push'
	WHERE s.model IS NOT NULL OR trouble.id IS NOT NULL;
COMMENT ON COLUMN @extschema@.possync_status.exact_by IS 'why nothing is missed, of the table of the tree where that is worth least: overlap, running transactions, comparison, log';
COMMENT ON VIEW @extschema@.possync_status IS 'how every tree is doing in every direction: state, complete up to, lag, queue, last success and error, next run';
GRANT SELECT ON @extschema@.possync_status TO PUBLIC;

-- How far the runs are that work now.
CREATE FUNCTION @extschema@._possync_running(OUT pid integer, OUT run integer, OUT model text, OUT direction text,
											 OUT phase text, OUT current_model text, OUT rows_done bigint,
											 OUT rows_expected bigint, OUT bytes_received bigint, OUT started_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'possync_running' LANGUAGE C;
COMMENT ON FUNCTION @extschema@._possync_running() IS 'internal: how far the runs are that work now in this database';

CREATE VIEW @extschema@.possync_progress AS
	SELECT r.*,
		   round((r.rows_done / nullif(extract(epoch FROM pg_catalog.clock_timestamp() - r.started_at), 0))::numeric, 1) AS rows_per_second,
		   CASE WHEN r.rows_done > 0 AND r.rows_expected >= r.rows_done
				THEN pg_catalog.clock_timestamp()
					 + (pg_catalog.clock_timestamp() - r.started_at) * (r.rows_expected - r.rows_done) / r.rows_done END AS eta
	FROM @extschema@._possync_running() r;
COMMENT ON VIEW @extschema@.possync_progress IS 'how far the runs are that work now, and when they may be done; empty if possync is not preloaded';
GRANT SELECT ON @extschema@.possync_progress TO PUBLIC;
