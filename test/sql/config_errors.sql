-- Errors that say what to do
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres;

CREATE SCHEMA wrong;
SET search_path = wrong, public;
CREATE TABLE t (id serial PRIMARY KEY, code varchar(3) NOT NULL UNIQUE, note text NOT NULL DEFAULT '',
	shape json, place point, twice text GENERATED ALWAYS AS (code || code) STORED, size numeric(4, 2));
CREATE VIEW v AS SELECT * FROM t;
CREATE MATERIALIZED VIEW mv AS SELECT * FROM t;
CREATE TEMP TABLE temporary (id serial PRIMARY KEY);
CREATE FOREIGN DATA WRAPPER other;
CREATE SERVER other_server FOREIGN DATA WRAPPER other;
CREATE FOREIGN TABLE ft (id integer) SERVER other_server;
CREATE TYPE composite AS (a integer);

-- options of a server
ALTER SERVER hq OPTIONS (connect_timeout 'soon');
ALTER SERVER hq OPTIONS (connect_timeout '1 week');
ALTER SERVER hq OPTIONS (connect_timeout '-1');
ALTER SERVER hq OPTIONS (overlap '-1ms');
ALTER SERVER hq OPTIONS (statement_timeout '30d');
ALTER SERVER hq OPTIONS (password 'x');
CREATE USER MAPPING FOR PUBLIC SERVER hq OPTIONS (host 'x');
ALTER SERVER hq OPTIONS (hots 'x');
ALTER SERVER hq OPTIONS (connect_timeout '500ms', statement_timeout '0.5', overlap '1min');

-- servers
SELECT possync_add_model('t', server => 'hw');
SELECT possync_add_model('t', server => 'other_server');
SELECT possync_add_model('t', server => NULL);
-- tables
SELECT possync_add_model('v', server => 'hq');
SELECT possync_add_model('mv', server => 'hq');
SELECT possync_add_model('ft', server => 'hq');
SELECT possync_add_model('t_id_seq', server => 'hq');
SELECT possync_add_model('t_pkey', server => 'hq');
SELECT possync_add_model('composite', server => 'hq');
SELECT possync_add_model('pg_class', server => 'hq');
SELECT possync_add_model('synchronize_model', server => 'hq');
SELECT possync_add_model(999999::oid, server => 'hq');
SELECT possync_add_model(NULL, server => 'hq');
\set VERBOSITY sqlstate
SELECT possync_add_model('temporary', server => 'hq');
SELECT possync_add_model('missing', server => 'hq');
\set VERBOSITY default
-- names
SELECT possync_add_model('t', server => 'hq', name => '');
SELECT possync_add_model('t', server => 'hq', remote => 'public.t; DROP TABLE t');
SELECT possync_add_model('t', server => 'hq', remote => 'a.b.c');
SELECT * FROM possync_tree('t');
SELECT model FROM possync_add_model('t', server => 'hq');
SELECT possync_add_model('t', server => 'hq', name => 'u');
CREATE TABLE u (id serial PRIMARY KEY);
SELECT possync_add_model('u', server => 'hq', name => 't');
SELECT * FROM possync_tree('tt');
SELECT * FROM possync_tree(NULL);
-- models
SELECT possync_set_model(NULL, name => 'x');
SELECT possync_set_model('t', name => '');
SELECT possync_set_model('t', on_unknown => 'insert');
SELECT possync_set_model('t', on_match => 'overwrite');
SELECT possync_set_model('t', remote => '');
SELECT possync_set_model('t', change_columns => ARRAY[NULL]);
SELECT model FROM possync_add_model('u', server => 'hq');
SELECT possync_set_model('u', name => 't');
SELECT possync_set_model('u', on_unknown => 'match');
-- fields
SELECT possync_set_field('t', 'kode', match => true);
SELECT possync_set_field('t', 'quantity', match => true);
SELECT possync_set_field('t', NULL, match => true);
SELECT possync_set_field('t', 'note', match => true, copy => false);
ALTER TABLE t ADD late integer;
SELECT possync_set_field('t', 'late', copy => false);
SELECT possync_set_field('t', 'id', match => true);
SELECT possync_set_field('t', 'id', fixed => '1');
SELECT possync_set_field('t', 'shape', match => true);
SELECT possync_set_field('t', 'place', match => true);
SELECT possync_set_field('t', 'twice', copy => true);
SELECT possync_set_field('t', 'twice', fixed => 'x');
SELECT possync_set_field('t', 'code', copy => true, fixed => 'x');
SELECT possync_set_field('t', 'code', copy => false);
SELECT possync_set_field('t', 'code', fixed => 'long');
\set VERBOSITY terse
SELECT possync_set_field('t', 'size', fixed => 'big');
SELECT possync_set_field('t', 'size', fixed => '1000');
SELECT possync_set_field('t', 'size', fixed => '1); DROP TABLE t; --');
\set VERBOSITY default
SELECT possync_set_field('t', 'note', remote => '');
-- a warning where no row could be made
SELECT possync_set_field('t', 'note', copy => false);
SELECT possync_set_field('t', 'code', copy => false, match => false);
-- children
SELECT possync_add_child('t', 'u');
SELECT possync_add_child('t', 't');
SELECT possync_add_child('t', 'v');
-- removing
SELECT possync_remove_model('x');
-- what all this left
SELECT * FROM possync_tree('t');
-- a table that is gone
DROP TABLE u;
SELECT possync_remove_model('u');

DROP EXTENSION possync CASCADE;
DROP FOREIGN DATA WRAPPER other CASCADE;
DROP TABLE temporary;
DROP SCHEMA wrong CASCADE;
