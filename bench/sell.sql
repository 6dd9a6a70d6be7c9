/*
 * bench/sell.sql: sales number 1 to :sales, each with four lines and a payment
 * in a transaction of its own, as a till makes them.
 *
 * Foreign keys are checked by plans that a session makes once; made for empty
 * tables they read them from end to end ever after.  So the tables are analyzed
 * after the first sales.
 */
SET synchronous_commit = off;
CREATE PROCEDURE sell(first integer, last integer)
LANGUAGE plpgsql AS $$
DECLARE
	product bigint[] := (SELECT array_agg(id ORDER BY sku COLLATE "C") FROM product);
	sale bigint;
BEGIN
	FOR i IN first .. last LOOP
		INSERT INTO sale (number, sold_at, total)
		VALUES ('S' || i, timestamptz '2026-11-01' + i * interval '1 minute', 40)
		RETURNING id INTO sale;
		INSERT INTO sale_line (sale_id, product_id, qty, price)
		SELECT sale, product[1 + (i * 4 + k) % array_length(product, 1) * 7919 % array_length(product, 1)], k, 10
		FROM generate_series(1, 4) k;
		INSERT INTO payment (sale_id, method, amount) VALUES (sale, 'CASH', 40);
		COMMIT;
	END LOOP;
END
$$;
CALL sell(1, least(1000, :sales));
ANALYZE sale, sale_line, payment;
CALL sell(1001, :sales);
