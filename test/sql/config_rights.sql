-- Rights: own the table, have USAGE on the server
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres;

CREATE SCHEMA rights;
GRANT ALL ON SCHEMA rights TO PUBLIC;
SET search_path = rights, public;
CREATE ROLE regress_possync_owner;
CREATE ROLE regress_possync_member IN ROLE regress_possync_owner;
CREATE ROLE regress_possync_other;
CREATE TABLE theirs (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
GRANT REFERENCES, SELECT ON theirs TO PUBLIC;

SET ROLE regress_possync_owner;
CREATE TABLE base (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE mine (id serial PRIMARY KEY, base_id integer REFERENCES base, name text NOT NULL UNIQUE);
GRANT REFERENCES ON base TO PUBLIC;
SELECT possync_add_model('mine', server => 'hq');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER hq TO regress_possync_owner, regress_possync_other;
SET ROLE regress_possync_owner;
SELECT model, role FROM possync_add_model('mine', server => 'hq');
SELECT possync_set_field('mine', 'name', remote => 'label');
SELECT possync_set_model('mine', on_match => 'keep');
SELECT possync_add_model('theirs', server => 'hq');
-- what others own can be shared, once they configured it
CREATE TABLE refers (id serial PRIMARY KEY, theirs_id integer REFERENCES theirs);
SELECT possync_add_model('refers', server => 'hq');
RESET ROLE;
SELECT model, role FROM possync_add_model('theirs', server => 'hq');
ALTER TABLE theirs ADD late text;
SET ROLE regress_possync_owner;
SELECT model, role, reason FROM possync_add_model('refers', server => 'hq');
SELECT count(*) FROM synchronize_field f JOIN synchronize_model m ON m.id = f.model WHERE m.name = 'theirs' AND f.name = 'late';
SELECT possync_set_field('theirs', 'name', copy => false);
SELECT possync_set_model('theirs', on_match => 'keep');
SELECT possync_remove_model('theirs');

-- a member of the owner may as well, another role may not
SET ROLE regress_possync_member;
SELECT possync_set_model('mine', on_match => 'update');
SET ROLE regress_possync_other;
SELECT possync_set_model('mine', on_match => 'update');
SELECT possync_set_field('mine', 'name', copy => false);
SELECT possync_remove_model('mine');
SELECT possync_add_child('base', 'mine');
SELECT does FROM possync_tree('mine', fields => false);
-- nor by the tables
\set VERBOSITY terse
UPDATE synchronize_model SET remote = 'x' WHERE name = 'mine';
DELETE FROM synchronize_field f USING synchronize_model m WHERE m.id = f.model AND m.name = 'mine';
INSERT INTO synchronize_model (name, relation, server, remote, key_columns) VALUES ('m', 'theirs', 'x', 'x', '{id}');
INSERT INTO synchronize_child SELECT m.id, m.id FROM synchronize_model m WHERE m.name = 'mine';
INSERT INTO synchronize_field (model, name, remote, copy) VALUES (999, 'a', 'a', true);
SELECT count(*) FROM synchronize_translation;
RESET ROLE;
INSERT INTO synchronize_position (model, position, source, run) SELECT id, 'x', 'x', 1 FROM synchronize_model;
SET ROLE regress_possync_other;
DELETE FROM synchronize_position p USING synchronize_model m WHERE m.id = p.model AND m.name = 'mine';
\set VERBOSITY default

-- inside somebody's security definer function that one's rights count
CREATE FUNCTION trap() RETURNS text LANGUAGE sql SECURITY DEFINER
AS $$ SELECT public.possync_set_model('mine', remote => 'stolen') $$;
SET ROLE regress_possync_owner;
SELECT trap();
RESET ROLE;
SELECT trap();

-- the owner removes, translations too
INSERT INTO synchronize_translation (model, decision, run, remote_key, local_key)
SELECT id, 'c', 1, 1, 1 FROM synchronize_model;
SET ROLE regress_possync_owner;
SELECT possync_remove_model('mine', forget => true);
RESET ROLE;
SELECT count(*) FROM synchronize_field f LEFT JOIN synchronize_model m ON m.id = f.model WHERE m.id IS NULL;
SELECT count(*) FROM synchronize_position p LEFT JOIN synchronize_model m ON m.id = p.model WHERE m.id IS NULL;
SELECT m.name FROM synchronize_translation t LEFT JOIN synchronize_model m ON m.id = t.model ORDER BY 1;

-- of a table that is gone there is no owner; who may use its server may remove
-- the model, and nobody may make another one of it
SET ROLE regress_possync_owner;
CREATE TABLE gone (id serial PRIMARY KEY, theirs_id integer REFERENCES theirs);
SELECT model FROM possync_add_model('gone', server => 'hq');
DROP TABLE gone;
SELECT * FROM possync_tree('gone');
SELECT possync_set_model('gone', on_match => 'keep');
UPDATE synchronize_model SET relation = 'base' WHERE name = 'gone';
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER hq FROM regress_possync_other;
SET ROLE regress_possync_other;
SELECT possync_remove_model('gone');
DELETE FROM synchronize_model WHERE name = 'gone';
SET ROLE regress_possync_owner;
SELECT possync_remove_model('gone');
RESET ROLE;

-- every function of possync's fixes its search path
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'possync' JOIN pg_language l ON l.oid = p.prolang
WHERE l.lanname <> 'c' AND NOT coalesce(p.proconfig::text LIKE '%search_path=pg_catalog, pg_temp%', false);
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'possync'
WHERE obj_description(p.oid, 'pg_proc') IS NULL;

DROP EXTENSION possync CASCADE;
DROP SCHEMA rights CASCADE;
DROP ROLE regress_possync_owner, regress_possync_member, regress_possync_other;
