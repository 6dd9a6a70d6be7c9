/* sql/possync--0.1.sql */

\echo Use "CREATE EXTENSION possync" to load this file. \quit

/*
 * Configuration and bookkeeping.  Ordinary tables: local tables are stored as
 * regclass and servers by name, so that pg_dump carries everything.
 */

-- A local table with its remote counterpart.  One per table and server: its
-- id stands for (table, server) in every other table.
CREATE TABLE @extschema@.synchronize_model (
	id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL UNIQUE,
	relation regclass NOT NULL,
	server name NOT NULL,
	remote text NOT NULL,
	key_columns name[] NOT NULL,
	on_unknown text NOT NULL DEFAULT 'match_create'
		CHECK (on_unknown IN ('match_create', 'match', 'create', 'ignore')),
	on_match text NOT NULL DEFAULT 'update'
		CHECK (on_match IN ('update', 'keep')),
	change_columns text[] CHECK (cardinality(change_columns) > 0),
	reason text,
	UNIQUE (relation, server)
);

COMMENT ON TABLE @extschema@.synchronize_model IS 'a local table with its remote counterpart';
COMMENT ON COLUMN @extschema@.synchronize_model.remote IS 'the remote table, written as the remote would: schema.table';
COMMENT ON COLUMN @extschema@.synchronize_model.key_columns IS 'local columns that identify a row: the primary key or a unique constraint over columns that are not null';
COMMENT ON COLUMN @extschema@.synchronize_model.on_unknown IS 'what may happen to a row whose counterpart is not known: match_create, match, create or ignore';
COMMENT ON COLUMN @extschema@.synchronize_model.on_match IS 'what happens to a row found by its match fields: update it from the source, or keep it as it is';
COMMENT ON COLUMN @extschema@.synchronize_model.change_columns IS 'remote columns that tell when a row was changed; null: every row is read and compared';
COMMENT ON COLUMN @extschema@.synchronize_model.reason IS 'why it was proposed like this';

-- A column of a model.
CREATE TABLE @extschema@.synchronize_field (
	model smallint NOT NULL REFERENCES @extschema@.synchronize_model ON DELETE CASCADE,
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
	model smallint NOT NULL REFERENCES @extschema@.synchronize_model ON DELETE CASCADE,
	child smallint NOT NULL REFERENCES @extschema@.synchronize_model ON DELETE CASCADE,
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
	CHECK (num_nonnulls(remote_key, remote_key_text) = 1
		   AND num_nonnulls(local_key, local_key_text) = 1)
);

CREATE UNIQUE INDEX synchronize_translation_remote ON @extschema@.synchronize_translation (model, remote_key) WHERE remote_key IS NOT NULL;
CREATE UNIQUE INDEX synchronize_translation_local ON @extschema@.synchronize_translation (model, local_key) WHERE local_key IS NOT NULL;
CREATE UNIQUE INDEX synchronize_translation_remote_text ON @extschema@.synchronize_translation (model, remote_key_text) WHERE remote_key_text IS NOT NULL;
CREATE UNIQUE INDEX synchronize_translation_local_text ON @extschema@.synchronize_translation (model, local_key_text) WHERE local_key_text IS NOT NULL;

COMMENT ON TABLE @extschema@.synchronize_translation IS 'which remote key is which local key, one row for every row that was synchronized';
COMMENT ON COLUMN @extschema@.synchronize_translation.decision IS 'how the two were linked: m matched, c created';
COMMENT ON COLUMN @extschema@.synchronize_translation.run IS 'the run in synchronize_history that linked them';

-- How far a model has been read.
CREATE TABLE @extschema@.synchronize_position (
	model smallint PRIMARY KEY REFERENCES @extschema@.synchronize_model ON DELETE CASCADE,
	position text NOT NULL,
	source text NOT NULL,
	run integer NOT NULL
);

COMMENT ON TABLE @extschema@.synchronize_position IS 'how far a model has been read: the source is complete up to there';
COMMENT ON COLUMN @extschema@.synchronize_position.position IS 'a value of the change columns, in the source''s text form';
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
	rows_unchanged bigint NOT NULL DEFAULT 0,
	rows_left_out bigint NOT NULL DEFAULT 0,
	bytes_received bigint NOT NULL DEFAULT 0,
	position timestamptz,
	models jsonb,
	error text,
	sqlstate text,
	error_detail text,
	error_hint text,
	error_context text
);

COMMENT ON TABLE @extschema@.synchronize_history IS 'one row for every run';
COMMENT ON COLUMN @extschema@.synchronize_history.position IS 'by the source''s clock: everything committed there before is here';
COMMENT ON COLUMN @extschema@.synchronize_history.models IS 'counts, time in milliseconds and position of every model that took part';

-- Rows that could not be applied.  They are asked for again in every run.
CREATE TABLE @extschema@.synchronize_quarantine (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	model smallint NOT NULL REFERENCES @extschema@.synchronize_model ON DELETE CASCADE,
	remote_key text NOT NULL,
	reason text NOT NULL CHECK (reason IN ('ambiguous', 'linked', 'unmatched', 'dependency', 'suppressed', 'error')),
	message text NOT NULL,
	candidates text[],
	row_image jsonb,
	run integer NOT NULL,
	since timestamptz NOT NULL DEFAULT now(),
	UNIQUE (model, remote_key)
);

COMMENT ON TABLE @extschema@.synchronize_quarantine IS 'rows that were left out, and why; every run tries them again';
COMMENT ON COLUMN @extschema@.synchronize_quarantine.candidates IS 'local keys between which somebody has to choose';

GRANT SELECT ON @extschema@.synchronize_model, @extschema@.synchronize_field,
	@extschema@.synchronize_child, @extschema@.synchronize_position,
	@extschema@.synchronize_history TO PUBLIC;

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

/*
 * Connections.  A wrapper without handler: servers and user mappings are where
 * addresses and passwords live; there are no foreign tables.
 */
CREATE FUNCTION @extschema@.possync_postgres_validator(text[], oid) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_postgres_validator(text[], oid) IS 'checks the options of possync_postgres servers and user mappings';

CREATE FOREIGN DATA WRAPPER possync_postgres VALIDATOR @extschema@.possync_postgres_validator;
COMMENT ON FOREIGN DATA WRAPPER possync_postgres IS 'possync: a remote PostgreSQL';

/* --- configuration functions (model, field, child) --- */

/* --- engine entry points --- */
CREATE FUNCTION @extschema@.possync_pull(model text, dry_run boolean DEFAULT false, on_error text DEFAULT 'report')
RETURNS @extschema@.synchronize_history
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION @extschema@.possync_pull(text, boolean, text) IS 'reads the tree of a model from its server and applies what changed there; returns the run''s row of synchronize_history';
