/*
 * bench/fdw_setup.sql: a till that pulls with SQL written by hand over
 * postgres_fdw; fdw_pull.sql and row_pull() below.
 */
\getenv password PGPASSWORD
CREATE EXTENSION postgres_fdw;
CREATE SERVER hq FOREIGN DATA WRAPPER postgres_fdw
	OPTIONS (host '127.0.0.1', port :'port', dbname :'dbname',
			 fetch_size '10000');
CREATE USER MAPPING FOR CURRENT_USER SERVER hq
	OPTIONS (user 'postgres', password :'password');

CREATE SCHEMA hq;
IMPORT FOREIGN SCHEMA public
	LIMIT TO (uom_category, uom, category, tax, template, product, barcode,
			  price_list, price_list_line)
	FROM SERVER hq INTO hq;

/*
 * The local key begins the second index.  With the model in front of both, a
 * planner without statistics takes either one for a search by remote key, and
 * the wrong one makes the row-by-row pull quadratic.  (Partitions by model
 * change nothing that can be measured.)
 */
CREATE TABLE translation (
	model integer NOT NULL,
	local_id bigint NOT NULL,
	remote_id bigint NOT NULL,
	PRIMARY KEY (model, remote_id),
	UNIQUE (local_id, model)
);

-- for content.sql
CREATE VIEW linked (relation, local_key, remote_key) AS
	SELECT (ARRAY['uom_category', 'uom', 'category', 'tax', 'template',
				  'product', 'barcode', 'price_list', 'price_list_line'])
			[model], local_id, remote_id
	FROM translation;
