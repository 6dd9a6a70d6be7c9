/*
 * bench/update_setup.sql: what the master has changed, as the till would have to
 * write it: local keys and new values, in the order of the keys.
 */
\getenv password PGPASSWORD
CREATE EXTENSION postgres_fdw;
CREATE SERVER changed FOREIGN DATA WRAPPER postgres_fdw
	OPTIONS (host '127.0.0.1', port :'port', dbname :'dbname', fetch_size '10000');
CREATE USER MAPPING FOR CURRENT_USER SERVER changed
	OPTIONS (user 'postgres', password :'password');
CREATE SCHEMA changed;
IMPORT FOREIGN SCHEMA public LIMIT TO (template, product, barcode, price_list_line)
	FROM SERVER changed INTO changed;

CREATE TABLE changed_template AS
	SELECT l.local_key AS id, list_price, updated_at
	FROM changed.template JOIN linked l ON (relation, remote_key) = ('template', id)
	WHERE updated_at > :'since' ORDER BY 1;
CREATE TABLE changed_product AS
	SELECT l.local_key AS id, weight, updated_at
	FROM changed.product JOIN linked l ON (relation, remote_key) = ('product', id)
	WHERE updated_at > :'since' ORDER BY 1;
CREATE TABLE changed_barcode AS
	SELECT l.local_key AS id, kind, updated_at
	FROM changed.barcode JOIN linked l ON (relation, remote_key) = ('barcode', id)
	WHERE updated_at > :'since' ORDER BY 1;
CREATE TABLE changed_price_list_line AS
	SELECT l.local_key AS id, price, updated_at
	FROM changed.price_list_line JOIN linked l ON (relation, remote_key) = ('price_list_line', id)
	WHERE updated_at > :'since' ORDER BY 1;
ANALYZE changed_template, changed_product, changed_barcode, changed_price_list_line;
