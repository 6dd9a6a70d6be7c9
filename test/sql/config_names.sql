-- Names: several schemas, quoted, reserved words, taken
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres;

CREATE SCHEMA names;
CREATE SCHEMA "My Shop";
SET search_path = names, public;
CREATE TABLE "My Shop"."select" ("from" serial PRIMARY KEY, "Red ""apples""" text NOT NULL UNIQUE);
CREATE TABLE "My Shop"."Order.Line" (
	"ID" serial PRIMARY KEY,
	dropped integer,
	"user" integer NOT NULL REFERENCES "My Shop"."select",
	"No." text NOT NULL UNIQUE,
	"Last Modified" timestamptz,
	lastmodified timestamptz NOT NULL);
ALTER TABLE "My Shop"."Order.Line" DROP dropped;
CREATE TABLE "order" (id serial PRIMARY KEY, line integer REFERENCES "My Shop"."Order.Line" ("ID"));
SELECT * FROM possync_add_model('"order"', server => 'hq');
SELECT * FROM possync_tree('order');
SELECT possync_set_field('Order.Line', 'user', match => true);
SELECT possync_set_field('select', 'Red "apples"', fixed => 'O''Hara');
SELECT possync_set_model('order', remote => 'public."Order"');

-- taken names
CREATE SCHEMA other;
CREATE SCHEMA other_names;
CREATE TABLE other."order" (id serial PRIMARY KEY);
CREATE TABLE other_names.order_2 (id serial PRIMARY KEY);
CREATE TABLE names.other_item (id serial PRIMARY KEY);
CREATE TABLE names.item (id serial PRIMARY KEY);
CREATE TABLE other.item (id serial PRIMARY KEY);
SELECT model, relation FROM possync_add_model('other."order"', server => 'hq');
SELECT model, relation FROM possync_add_model('names.item', server => 'hq');
SELECT model, relation FROM possync_add_model('names.other_item', server => 'hq');
SELECT model, relation FROM possync_add_model('other.item', server => 'hq');
CREATE SERVER branch FOREIGN DATA WRAPPER possync_postgres;
SELECT model, relation FROM possync_add_model('names.item', server => 'branch');
SELECT model, relation FROM possync_add_model('names.other_item', server => 'branch', name => 'thing', remote => 'things');
SELECT model, relation FROM possync_add_model('names.other_item', server => 'branch', name => 'thing', remote => 'things');

-- a table that is renamed stays the same model
ALTER TABLE names.item RENAME TO article;
ALTER TABLE names.article SET SCHEMA other_names;
SELECT name, relation, remote FROM synchronize_model WHERE name LIKE 'item%' ORDER BY name;

DROP EXTENSION possync CASCADE;
DROP SCHEMA names, "My Shop", other, other_names CASCADE;
