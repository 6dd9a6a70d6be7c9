/*
 * bench/possync_setup.sql: a till that pulls with possync.
 */
\getenv password PGPASSWORD
CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres
	OPTIONS (host '127.0.0.1', port :'port', dbname :'dbname');
CREATE USER MAPPING FOR CURRENT_USER SERVER hq
	OPTIONS (user 'postgres', password :'password');

\o /dev/null
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT possync_add_child('product', 'barcode');
SELECT possync_add_child('product', 'price_list_line');
\o

-- for content.sql
CREATE VIEW linked (relation, local_key, remote_key) AS
	SELECT m.relation::text, t.local_key, t.remote_key
	FROM synchronize_translation t
	JOIN synchronize_model m ON m.id = t.model;
