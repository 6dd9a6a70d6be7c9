-- Partitioned and inherited tables
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres;

CREATE SCHEMA part;
SET search_path = part, public;
CREATE TABLE shop (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE dropped (id serial PRIMARY KEY);
CREATE TABLE sale (
	gone integer,
	id bigint GENERATED ALWAYS AS IDENTITY,
	day date NOT NULL,
	shop_id integer NOT NULL REFERENCES shop,
	PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
ALTER TABLE sale DROP gone;
CREATE TABLE sale_2025 PARTITION OF sale FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE sale_2026 PARTITION OF sale FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY RANGE (day);
CREATE TABLE sale_2026_1 PARTITION OF sale_2026 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
-- of one partition only: says nothing about the model
ALTER TABLE sale_2025 ADD FOREIGN KEY (shop_id) REFERENCES dropped;
CREATE TABLE sale_line (
	sale_id bigint NOT NULL,
	sale_day date NOT NULL,
	line integer NOT NULL,
	PRIMARY KEY (sale_id, sale_day, line),
	FOREIGN KEY (sale_id, sale_day) REFERENCES sale ON DELETE CASCADE) PARTITION BY HASH (sale_id);
CREATE TABLE sale_line_0 PARTITION OF sale_line FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE sale_line_1 PARTITION OF sale_line FOR VALUES WITH (MODULUS 2, REMAINDER 1);
-- refers to a partition: to the partitioned table
CREATE TABLE receipt (id serial PRIMARY KEY, sale_id bigint, sale_day date,
	FOREIGN KEY (sale_id, sale_day) REFERENCES sale_2025);

SELECT * FROM possync_add_model('sale', server => 'hq');
SELECT * FROM possync_tree('sale');
SELECT model, relation, role, reason FROM possync_add_model('receipt', server => 'hq');
SELECT * FROM possync_tree('receipt', fields => false);
SELECT possync_add_model('sale_2026_1', server => 'hq');
SELECT possync_add_child('sale', 'sale_line_0');

-- inheritance: a table is a model of its own
CREATE TABLE party (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE person (born date, shop_id integer REFERENCES shop) INHERITS (party);
CREATE TABLE visit (id serial PRIMARY KEY, party_id integer NOT NULL REFERENCES party);
SELECT * FROM possync_add_model('visit', server => 'hq');
SELECT possync_add_model('person', server => 'hq');
ALTER TABLE person ADD PRIMARY KEY (id);
SELECT * FROM possync_add_model('person', server => 'hq');
SELECT * FROM possync_tree('person');

DROP EXTENSION possync CASCADE;
DROP SCHEMA part CASCADE;
