/*
 * bench/fdw_push_setup.sql: a till of fdw_setup.sql that also pushes, with
 * fdw_push.sql or row_push() below.
 */
CREATE EXTENSION dblink;
ALTER SERVER hq OPTIONS (ADD batch_size '1000');
IMPORT FOREIGN SCHEMA public LIMIT TO (sale, sale_line, payment)
	FROM SERVER hq INTO hq;

-- for sales.sql
CREATE OR REPLACE VIEW linked (relation, local_key, remote_key) AS
	SELECT (ARRAY['uom_category', 'uom', 'category', 'tax', 'template',
				  'product', 'barcode', 'price_list', 'price_list_line',
				  'sale', 'sale_line', 'payment'])
			[model], local_id, remote_id
	FROM translation;

/*
 * The push as most people write it first: an INSERT for every row, whose key
 * the master returns.  By dblink each one is a round trip; postgres_fdw needs
 * three.
 */
CREATE FUNCTION row_push() RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	s record;
	l record;
	sale_key bigint;
	key bigint;
BEGIN
	PERFORM dblink_connect('master', 'hq');
	PERFORM dblink_exec('master', 'BEGIN');
	FOR s IN SELECT * FROM sale ORDER BY id LOOP
		SELECT id INTO sale_key FROM dblink('master', format(
			'INSERT INTO sale (number, sold_at, total) VALUES (%L, %L, %L) RETURNING id',
			s.number, s.sold_at, s.total)) q(id bigint);
		INSERT INTO translation VALUES (10, s.id, sale_key);
		FOR l IN SELECT t.*, x.remote_id AS product FROM sale_line t
			JOIN translation x ON x.model = 6 AND x.local_id = t.product_id
			WHERE t.sale_id = s.id ORDER BY t.id LOOP
			SELECT id INTO key FROM dblink('master', format(
				'INSERT INTO sale_line (sale_id, product_id, qty, price) VALUES (%L, %L, %L, %L) RETURNING id',
				sale_key, l.product, l.qty, l.price)) q(id bigint);
			INSERT INTO translation VALUES (11, l.id, key);
		END LOOP;
		FOR l IN SELECT * FROM payment WHERE sale_id = s.id ORDER BY id LOOP
			SELECT id INTO key FROM dblink('master', format(
				'INSERT INTO payment (sale_id, method, amount) VALUES (%L, %L, %L) RETURNING id',
				sale_key, l.method, l.amount)) q(id bigint);
			INSERT INTO translation VALUES (12, l.id, key);
		END LOOP;
	END LOOP;
	PERFORM dblink_exec('master', 'COMMIT');
	PERFORM dblink_disconnect('master');
END
$$;
