-- The other direction: from now on every committed sale waits for being sent.
SELECT model, role, reason FROM possync_add_model('sale', server => 'hq');
SELECT possync_queue('sale');

-- Sell.  The till needs no network for that.
DO $$
DECLARE
	buyer bigint;
	sold bigint;
BEGIN
	INSERT INTO customer (email, name) VALUES ('ada@example.com', 'Ada') RETURNING id INTO buyer;
	FOR i IN 1..3 LOOP
		INSERT INTO sale (number, customer, total) VALUES ('T17-' || i, CASE i WHEN 2 THEN buyer END, 0)
		RETURNING id INTO sold;
		INSERT INTO sale_line (sale, product, quantity, price)
		SELECT sold, id, 1, cost_price + 1 FROM product WHERE id % 1000 = i ORDER BY id LIMIT 3;
		UPDATE sale SET total = (SELECT sum(quantity * price) FROM sale_line WHERE sale = sold) WHERE id = sold;
		INSERT INTO payment (sale, method, amount) SELECT id, 'cash', total FROM sale WHERE id = sold;
	END LOOP;
END $$;
SELECT * FROM possync_queue_depth;

-- Send them.  Head office makes the keys; the new customer goes with her sale.
SELECT status, rows_read, rows_created, rows_matched, rows_left_out FROM possync_push('sale');
SELECT * FROM possync_explain('sale', (SELECT id::text FROM sale WHERE number = 'T17-2'));

-- Once more: nothing waits.
SELECT status, rows_read FROM possync_push('sale');
