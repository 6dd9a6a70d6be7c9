/*
 * bench/content.sql: every row of the nine tables as master and till must
 * agree on it: the master's key that it is linked with, its business key, its
 * values, and its parents by their business keys.  The output of both sides
 * is compared byte by byte.  A row without a link, or with a second one, makes
 * a difference as much as a wrong value does.
 *
 * The view "linked" says which local key stands for which key of the master.
 */
COPY (SELECT k.remote_key, t.code, t.name, t.updated_at
	FROM uom_category t
	LEFT JOIN linked k ON k.relation = 'uom_category' AND k.local_key = t.id
	ORDER BY t.code COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, t.code, t.name, c.code, t.factor, t.updated_at
	FROM uom t
	JOIN uom_category c ON c.id = t.category_id
	LEFT JOIN linked k ON k.relation = 'uom' AND k.local_key = t.id
	ORDER BY t.code COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, t.code, t.name, p.code, t.updated_at
	FROM category t
	LEFT JOIN category p ON p.id = t.parent_id
	LEFT JOIN linked k ON k.relation = 'category' AND k.local_key = t.id
	ORDER BY t.code COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, t.code, t.name, t.rate, t.updated_at
	FROM tax t
	LEFT JOIN linked k ON k.relation = 'tax' AND k.local_key = t.id
	ORDER BY t.code COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, t.code, t.name, t.description, c.code, u.code,
		x.code, t.list_price, t.cost_price, t.active, t.updated_at
	FROM template t
	JOIN category c ON c.id = t.category_id
	JOIN uom u ON u.id = t.uom_id
	JOIN tax x ON x.id = t.tax_id
	LEFT JOIN linked k ON k.relation = 'template' AND k.local_key = t.id
	ORDER BY t.code COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, t.sku, p.code, t.variant, t.weight, t.active,
		t.updated_at
	FROM product t
	JOIN template p ON p.id = t.template_id
	LEFT JOIN linked k ON k.relation = 'product' AND k.local_key = t.id
	ORDER BY t.sku COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, t.code, p.sku, t.kind, t.updated_at
	FROM barcode t
	JOIN product p ON p.id = t.product_id
	LEFT JOIN linked k ON k.relation = 'barcode' AND k.local_key = t.id
	ORDER BY t.code COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, t.code, t.name, t.updated_at
	FROM price_list t
	LEFT JOIN linked k ON k.relation = 'price_list' AND k.local_key = t.id
	ORDER BY t.code COLLATE "C", 1) TO STDOUT;

COPY (SELECT k.remote_key, l.code, p.sku, t.price, t.min_qty, t.updated_at
	FROM price_list_line t
	JOIN price_list l ON l.id = t.price_list_id
	JOIN product p ON p.id = t.product_id
	LEFT JOIN linked k ON k.relation = 'price_list_line'
		AND k.local_key = t.id
	ORDER BY l.code COLLATE "C", p.sku COLLATE "C", 1) TO STDOUT;

-- No link may lead nowhere.
COPY (SELECT relation, count(*) FROM linked GROUP BY 1
	ORDER BY relation COLLATE "C") TO STDOUT;
