-- Foreign keys of every kind: several to one table, self-references, cycles, composite, deferrable
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres;

CREATE SCHEMA graph;
SET search_path = graph, public;

-- employee and department refer to each other, employee to itself twice
CREATE TABLE department (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE employee (
	id serial PRIMARY KEY,
	email text NOT NULL UNIQUE,
	manager_id integer REFERENCES employee,
	deputy_id integer REFERENCES employee,
	department_id integer NOT NULL REFERENCES department);
ALTER TABLE department ADD head_id integer REFERENCES employee DEFERRABLE INITIALLY DEFERRED;
SELECT * FROM possync_add_model('employee', server => 'hq');
SELECT * FROM possync_tree('employee');
SELECT * FROM possync_tree('department', fields => false);
SELECT possync_remove_model('employee');
SELECT possync_set_field('department', 'head_id', copy => false);
SELECT possync_remove_model('employee');
-- what is not copied is not followed
SELECT * FROM possync_add_model('department', server => 'hq');
SELECT * FROM possync_tree('department');

-- a ring of three, with a cascade all around: children once
CREATE TABLE a (id serial PRIMARY KEY);
CREATE TABLE b (id serial PRIMARY KEY, a integer NOT NULL REFERENCES a ON DELETE CASCADE);
CREATE TABLE c (id serial PRIMARY KEY, b integer NOT NULL REFERENCES b ON DELETE CASCADE);
ALTER TABLE a ADD c integer NOT NULL REFERENCES c ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED;
SELECT * FROM possync_add_model('a', server => 'hq');
SELECT * FROM possync_tree('a', fields => false);

-- composite keys, keys that are not the primary key, two constraints on the same columns
CREATE TABLE company (id serial PRIMARY KEY, code text NOT NULL UNIQUE);
CREATE TABLE account (
	company_id integer REFERENCES company,
	number text,
	PRIMARY KEY (company_id, number));
CREATE TABLE entry (
	id serial PRIMARY KEY,
	company text NOT NULL REFERENCES company (code),
	company_id integer,
	debit text,
	credit text,
	FOREIGN KEY (company_id, debit) REFERENCES account,
	FOREIGN KEY (company_id, credit) REFERENCES account,
	FOREIGN KEY (company_id) REFERENCES company,
	CONSTRAINT again FOREIGN KEY (company_id) REFERENCES company);
SELECT * FROM possync_add_model('entry', server => 'hq');
SELECT * FROM possync_tree('entry');

-- children are followed below the root and its children only
CREATE TABLE brand (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE brand_logo (brand_id integer PRIMARY KEY REFERENCES brand ON DELETE CASCADE);
CREATE TABLE unit (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE item (id serial PRIMARY KEY, brand_id integer NOT NULL REFERENCES brand);
CREATE TABLE pack (id serial PRIMARY KEY, item_id integer NOT NULL REFERENCES item ON DELETE CASCADE, unit_id integer REFERENCES unit,
	inner_pack_id integer REFERENCES pack ON DELETE CASCADE);
CREATE TABLE pack_label (pack_id integer NOT NULL REFERENCES pack ON DELETE CASCADE, label text, PRIMARY KEY (pack_id, label));
ALTER TABLE item ADD default_pack_id integer REFERENCES pack;
SELECT * FROM possync_add_model('item', server => 'hq');
SELECT * FROM possync_tree('item', fields => false);
-- the dependency made a root gets its children
SELECT * FROM possync_add_model('brand', server => 'hq');
SELECT * FROM possync_tree('item', fields => false);

-- a tree of its own for another server
CREATE SERVER branch FOREIGN DATA WRAPPER possync_postgres;
SELECT * FROM possync_add_model('item', server => 'branch', name => 'branch_item');
SELECT * FROM possync_tree('branch_item', fields => false);

DROP EXTENSION possync CASCADE;
DROP SCHEMA graph CASCADE;
