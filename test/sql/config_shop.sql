-- Configuration of a shop, as in the first five minutes
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres;

CREATE SCHEMA shop;
SET search_path = shop, public;
CREATE TABLE uom_category (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE uom (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL,
	symbol text,
	category_id integer NOT NULL REFERENCES uom_category,
	updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE category (
	id serial PRIMARY KEY,
	parent_id integer REFERENCES category,
	name text NOT NULL,
	UNIQUE (parent_id, name));
CREATE TABLE tax (code text PRIMARY KEY, rate numeric(5, 2) NOT NULL);
CREATE TABLE template (
	id serial PRIMARY KEY,
	code text NOT NULL UNIQUE,
	name varchar(5) NOT NULL,
	category_id integer REFERENCES category,
	uom_id integer NOT NULL REFERENCES uom,
	po_uom_id integer REFERENCES uom,
	create_date timestamp,
	write_date timestamp);
CREATE TABLE product (
	id serial PRIMARY KEY,
	sku text NOT NULL UNIQUE,
	barcode text UNIQUE,
	template_id integer NOT NULL REFERENCES template ON DELETE CASCADE,
	price numeric,
	gross numeric GENERATED ALWAYS AS (price * 1.2) STORED,
	attributes json,
	active boolean NOT NULL,
	updated_at timestamptz DEFAULT now());
CREATE TABLE barcode (
	product_id integer NOT NULL REFERENCES product ON DELETE CASCADE,
	code text NOT NULL,
	PRIMARY KEY (product_id, code));
CREATE TABLE product_tax (
	product_id integer NOT NULL REFERENCES product ON DELETE CASCADE,
	tax text NOT NULL REFERENCES tax,
	PRIMARY KEY (product_id, tax));
CREATE TABLE price_list (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE price (
	id serial PRIMARY KEY,
	product_id integer NOT NULL REFERENCES product ON DELETE CASCADE,
	list_id integer NOT NULL REFERENCES price_list,
	price numeric,
	UNIQUE (product_id, list_id));
CREATE TABLE price_step (
	price_id integer NOT NULL REFERENCES price ON DELETE CASCADE,
	quantity integer NOT NULL,
	PRIMARY KEY (price_id, quantity));
-- not children: nullable, not cascading, without a key
CREATE TABLE review (id serial PRIMARY KEY, product_id integer REFERENCES product ON DELETE CASCADE);
CREATE TABLE sale_line (id serial PRIMARY KEY, product_id integer NOT NULL REFERENCES product);
CREATE TABLE tag (product_id integer NOT NULL REFERENCES product ON DELETE CASCADE, tag text);

SELECT * FROM possync_add_model('product', server => 'hq');
SELECT * FROM possync_tree('product');
SELECT * FROM possync_tree('product', fields => false);

-- what a tree shares is there once
SELECT * FROM possync_add_model('sale_line', server => 'hq') WHERE model IN ('sale_line', 'product');
SELECT * FROM possync_tree('sale_line', fields => false);

-- adding again finds nothing new, then what was added meanwhile
SELECT * FROM possync_add_model('uom', server => 'hq');
INSERT INTO synchronize_position (model, position, source, run)
SELECT id, 'x', 'x', 1 FROM synchronize_model;
CREATE TABLE brand (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
ALTER TABLE product ADD brand_id integer REFERENCES brand, DROP active;
SELECT * FROM possync_add_model('product', server => 'hq') WHERE reason !~ 'nothing new';
SELECT m.name FROM synchronize_model m LEFT JOIN synchronize_position p ON p.model = m.id
WHERE p.model IS NULL ORDER BY 1;

-- fields
SELECT possync_set_field('uom', 'symbol', match => true);
SELECT possync_set_field('uom', 'symbol', match => true);
SELECT reason FROM synchronize_model WHERE name = 'uom';
SELECT EXISTS (SELECT FROM synchronize_position p JOIN synchronize_model m ON m.id = p.model WHERE m.name = 'uom');
SELECT possync_set_field('uom', 'symbol', match => false);
SELECT possync_set_field('template', 'name', fixed => 'none');
SELECT possync_set_field('template', 'name', copy => true);
SELECT possync_set_field('product', 'updated_at', remote => 'modified');
SELECT change_columns FROM synchronize_model WHERE name = 'product';
SELECT possync_set_field('template', 'po_uom_id', copy => false);
SELECT possync_set_field('template', 'po_uom_id', fixed => '7');
SELECT possync_set_field('product', 'id', copy => true);
SELECT possync_set_field('template', 'name', copy => false);

-- models
SELECT possync_set_model('product', name => 'article', remote => '"Shop".articles');
SELECT possync_set_model('article', on_match => 'keep');
SELECT possync_set_model('article', on_unknown => 'match', on_match => 'update');
SELECT possync_set_model('article', on_unknown => 'ignore', change_columns => '{rev,seen}');
SELECT remote, change_columns, reason FROM synchronize_model WHERE name = 'article';
SELECT possync_set_model('article', change_columns => '{}');
SELECT remote, change_columns, reason FROM synchronize_model WHERE name = 'article';

-- children by request, with what they refer to
SELECT * FROM possync_add_child('article', 'review');
SELECT * FROM possync_add_child('article', 'review');
ALTER TABLE tag ADD PRIMARY KEY (product_id, tag);
SELECT * FROM possync_add_child('sale_line', 'tag');
SELECT * FROM possync_add_child('article', 'tag');
CREATE TABLE step_note (id serial PRIMARY KEY, price_id integer, quantity integer, brand_id integer REFERENCES brand,
	FOREIGN KEY (price_id, quantity) REFERENCES price_step);
SELECT * FROM possync_add_child('article', 'step_note');
SELECT p.name, c.name AS child, s.reason
FROM synchronize_child s JOIN synchronize_model p ON p.id = s.model JOIN synchronize_model c ON c.id = s.child
ORDER BY 1, 2;

-- an index that makes updates of pulled rows dearer
CREATE INDEX ON uom (symbol, updated_at);
SELECT ltrim(tree) AS tree, does FROM possync_tree('article') WHERE tree LIKE '%updated_at';

-- removing
SELECT possync_remove_model('uom');
SELECT possync_set_field('template', 'uom_id', fixed => '7');
INSERT INTO synchronize_translation (model, decision, run, remote_key, local_key)
SELECT id, 'c', 1, 1, 1 FROM synchronize_model WHERE name IN ('uom', 'tax');
SELECT possync_remove_model('uom');
SELECT possync_remove_model('uom', forget => true);
SELECT count(*) FROM synchronize_translation;
SELECT possync_remove_model('product_tax');
SELECT * FROM possync_tree('article', fields => false);

DROP EXTENSION possync CASCADE;
DROP SCHEMA shop CASCADE;
