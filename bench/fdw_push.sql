/*
 * bench/fdw_push.sql: one push as a careful administrator writes it by hand.
 *
 * Keys are taken from the master's sequences first, so that no INSERT has to
 * return one and postgres_fdw sends a thousand rows at a time.
 */
BEGIN;
\o /dev/null
SELECT dblink_connect('keys', 'hq');
\o

INSERT INTO translation (model, local_id, remote_id)
SELECT 10, t.id, k.id
FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM sale) t
JOIN (SELECT id, row_number() OVER () AS n
	FROM dblink('keys', format('SELECT nextval(''sale_id_seq'')'
							   ' FROM generate_series(1, %s)',
							   (SELECT count(*) FROM sale))) q(id bigint)) k
	USING (n);

INSERT INTO translation (model, local_id, remote_id)
SELECT 11, t.id, k.id
FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM sale_line) t
JOIN (SELECT id, row_number() OVER () AS n
	FROM dblink('keys', format('SELECT nextval(''sale_line_id_seq'')'
							   ' FROM generate_series(1, %s)',
							   (SELECT count(*) FROM sale_line))) q(id bigint)) k
	USING (n);

INSERT INTO translation (model, local_id, remote_id)
SELECT 12, t.id, k.id
FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM payment) t
JOIN (SELECT id, row_number() OVER () AS n
	FROM dblink('keys', format('SELECT nextval(''payment_id_seq'')'
							   ' FROM generate_series(1, %s)',
							   (SELECT count(*) FROM payment))) q(id bigint)) k
	USING (n);

INSERT INTO hq.sale (id, number, sold_at, total)
SELECT x.remote_id, t.number, t.sold_at, t.total
FROM sale t
JOIN translation x ON x.model = 10 AND x.local_id = t.id;

INSERT INTO hq.sale_line (id, sale_id, product_id, qty, price)
SELECT x.remote_id, s.remote_id, p.remote_id, t.qty, t.price
FROM sale_line t
JOIN translation x ON x.model = 11 AND x.local_id = t.id
JOIN translation s ON s.model = 10 AND s.local_id = t.sale_id
JOIN translation p ON p.model = 6 AND p.local_id = t.product_id;

INSERT INTO hq.payment (id, sale_id, method, amount)
SELECT x.remote_id, s.remote_id, t.method, t.amount
FROM payment t
JOIN translation x ON x.model = 12 AND x.local_id = t.id
JOIN translation s ON s.model = 10 AND s.local_id = t.sale_id;

COMMIT;
