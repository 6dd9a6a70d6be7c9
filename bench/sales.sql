/*
 * bench/sales.sql: every row of the three tables that are pushed as master and
 * till must agree on it; see content.sql.
 */
COPY (SELECT k.remote_key, t.number, t.sold_at, t.total
	FROM sale t
	LEFT JOIN linked k ON k.relation = 'sale' AND k.local_key = t.id
	ORDER BY t.number COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, s.number, p.sku, t.qty, t.price
	FROM sale_line t
	JOIN sale s ON s.id = t.sale_id
	JOIN product p ON p.id = t.product_id
	LEFT JOIN linked k ON k.relation = 'sale_line' AND k.local_key = t.id
	ORDER BY s.number COLLATE "C", t.qty, p.sku COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, s.number, t.method, t.amount
	FROM payment t
	JOIN sale s ON s.id = t.sale_id
	LEFT JOIN linked k ON k.relation = 'payment' AND k.local_key = t.id
	ORDER BY s.number COLLATE "C", 1) TO STDOUT;

-- No link may lead nowhere.
COPY (SELECT relation, count(*) FROM linked
	WHERE relation IN ('sale', 'sale_line', 'payment') GROUP BY 1
	ORDER BY relation COLLATE "C") TO STDOUT;
