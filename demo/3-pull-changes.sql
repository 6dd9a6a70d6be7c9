-- The till: only what changed is read.
\x on
SELECT status, rows_read, rows_created, rows_updated FROM possync_pull('product');
\x off

SELECT p.sku, t.name, p.variant, p.cost_price
FROM product p JOIN template t ON t.id = p.template
WHERE p.sku IN ('P-LAMP', 'P0000042') OR t.code = 'T000017'
ORDER BY p.sku;

-- Every run left a line in the history.
SELECT id, model, direction, status, rows_read, rows_created, rows_updated,
	finished_at - started_at AS took
FROM synchronize_history ORDER BY id;
