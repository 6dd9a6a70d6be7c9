/*
 * bench/fdw_pull.sql: one pull as a careful administrator writes it by hand.
 *
 * Stage what changed at the master, link every row that is new (matched by
 * its business key, else with a key of its own), then insert or update, and
 * leave alone what does not differ.  Parents come before their children.
 * :since is empty, or a WHERE clause that picks the changed rows.
 */
BEGIN;

-- uom_category
CREATE TEMP TABLE s_uom_category ON COMMIT DROP AS
	SELECT * FROM hq.uom_category :since;
ANALYZE s_uom_category;

INSERT INTO translation (model, local_id, remote_id)
SELECT 1, coalesce(t.id, nextval('uom_category_id_seq')), s.id
FROM s_uom_category s
LEFT JOIN uom_category t ON t.code = s.code
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 1 AND x.remote_id = s.id);

INSERT INTO uom_category AS t (id, code, name, updated_at)
SELECT x.local_id, s.code, s.name, s.updated_at
FROM s_uom_category s
JOIN translation x ON x.model = 1 AND x.remote_id = s.id
ON CONFLICT (id) DO UPDATE SET
	code = excluded.code, name = excluded.name,
	updated_at = excluded.updated_at
WHERE (t.code, t.name, t.updated_at)
	IS DISTINCT FROM (excluded.code, excluded.name, excluded.updated_at);

-- uom
CREATE TEMP TABLE s_uom ON COMMIT DROP AS
	SELECT * FROM hq.uom :since;
ANALYZE s_uom;

INSERT INTO translation (model, local_id, remote_id)
SELECT 2, coalesce(t.id, nextval('uom_id_seq')), s.id
FROM s_uom s
LEFT JOIN uom t ON t.code = s.code
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 2 AND x.remote_id = s.id);

INSERT INTO uom AS t (id, code, name, category_id, factor, updated_at)
SELECT x.local_id, s.code, s.name, c1.local_id, s.factor, s.updated_at
FROM s_uom s
JOIN translation x ON x.model = 2 AND x.remote_id = s.id
JOIN translation c1 ON c1.model = 1 AND c1.remote_id = s.category_id
ON CONFLICT (id) DO UPDATE SET
	code = excluded.code, name = excluded.name,
	category_id = excluded.category_id, factor = excluded.factor,
	updated_at = excluded.updated_at
WHERE (t.code, t.name, t.category_id, t.factor, t.updated_at)
	IS DISTINCT FROM (excluded.code, excluded.name, excluded.category_id,
		excluded.factor, excluded.updated_at);

-- category
CREATE TEMP TABLE s_category ON COMMIT DROP AS
	SELECT * FROM hq.category :since;
ANALYZE s_category;

INSERT INTO translation (model, local_id, remote_id)
SELECT 3, coalesce(t.id, nextval('category_id_seq')), s.id
FROM s_category s
LEFT JOIN category t ON t.code = s.code
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 3 AND x.remote_id = s.id);

INSERT INTO category AS t (id, code, name, parent_id, updated_at)
SELECT x.local_id, s.code, s.name, p3.local_id, s.updated_at
FROM s_category s
JOIN translation x ON x.model = 3 AND x.remote_id = s.id
LEFT JOIN translation p3 ON p3.model = 3 AND p3.remote_id = s.parent_id
ON CONFLICT (id) DO UPDATE SET
	code = excluded.code, name = excluded.name,
	parent_id = excluded.parent_id, updated_at = excluded.updated_at
WHERE (t.code, t.name, t.parent_id, t.updated_at)
	IS DISTINCT FROM (excluded.code, excluded.name, excluded.parent_id,
		excluded.updated_at);

-- tax
CREATE TEMP TABLE s_tax ON COMMIT DROP AS
	SELECT * FROM hq.tax :since;
ANALYZE s_tax;

INSERT INTO translation (model, local_id, remote_id)
SELECT 4, coalesce(t.id, nextval('tax_id_seq')), s.id
FROM s_tax s
LEFT JOIN tax t ON t.code = s.code
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 4 AND x.remote_id = s.id);

INSERT INTO tax AS t (id, code, name, rate, updated_at)
SELECT x.local_id, s.code, s.name, s.rate, s.updated_at
FROM s_tax s
JOIN translation x ON x.model = 4 AND x.remote_id = s.id
ON CONFLICT (id) DO UPDATE SET
	code = excluded.code, name = excluded.name, rate = excluded.rate,
	updated_at = excluded.updated_at
WHERE (t.code, t.name, t.rate, t.updated_at)
	IS DISTINCT FROM (excluded.code, excluded.name, excluded.rate,
		excluded.updated_at);

-- template
CREATE TEMP TABLE s_template ON COMMIT DROP AS
	SELECT * FROM hq.template :since;
ANALYZE s_template;

INSERT INTO translation (model, local_id, remote_id)
SELECT 5, coalesce(t.id, nextval('template_id_seq')), s.id
FROM s_template s
LEFT JOIN template t ON t.code = s.code
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 5 AND x.remote_id = s.id);

INSERT INTO template AS t (id, code, name, description, category_id, uom_id,
	tax_id, list_price, cost_price, active, updated_at)
SELECT x.local_id, s.code, s.name, s.description, c3.local_id, u2.local_id,
	t4.local_id, s.list_price, s.cost_price, s.active, s.updated_at
FROM s_template s
JOIN translation x ON x.model = 5 AND x.remote_id = s.id
JOIN translation c3 ON c3.model = 3 AND c3.remote_id = s.category_id
JOIN translation u2 ON u2.model = 2 AND u2.remote_id = s.uom_id
JOIN translation t4 ON t4.model = 4 AND t4.remote_id = s.tax_id
ON CONFLICT (id) DO UPDATE SET
	code = excluded.code, name = excluded.name,
	description = excluded.description, category_id = excluded.category_id,
	uom_id = excluded.uom_id, tax_id = excluded.tax_id,
	list_price = excluded.list_price, cost_price = excluded.cost_price,
	active = excluded.active, updated_at = excluded.updated_at
WHERE (t.code, t.name, t.description, t.category_id, t.uom_id, t.tax_id,
	t.list_price, t.cost_price, t.active, t.updated_at)
	IS DISTINCT FROM (excluded.code, excluded.name, excluded.description,
		excluded.category_id, excluded.uom_id, excluded.tax_id,
		excluded.list_price, excluded.cost_price, excluded.active,
		excluded.updated_at);

-- product
CREATE TEMP TABLE s_product ON COMMIT DROP AS
	SELECT * FROM hq.product :since;
ANALYZE s_product;

INSERT INTO translation (model, local_id, remote_id)
SELECT 6, coalesce(t.id, nextval('product_id_seq')), s.id
FROM s_product s
LEFT JOIN product t ON t.sku = s.sku
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 6 AND x.remote_id = s.id);

INSERT INTO product AS t (id, sku, template_id, variant, weight, active,
	updated_at)
SELECT x.local_id, s.sku, t5.local_id, s.variant, s.weight, s.active,
	s.updated_at
FROM s_product s
JOIN translation x ON x.model = 6 AND x.remote_id = s.id
JOIN translation t5 ON t5.model = 5 AND t5.remote_id = s.template_id
ON CONFLICT (id) DO UPDATE SET
	sku = excluded.sku, template_id = excluded.template_id,
	variant = excluded.variant, weight = excluded.weight,
	active = excluded.active, updated_at = excluded.updated_at
WHERE (t.sku, t.template_id, t.variant, t.weight, t.active, t.updated_at)
	IS DISTINCT FROM (excluded.sku, excluded.template_id, excluded.variant,
		excluded.weight, excluded.active, excluded.updated_at);

-- barcode
CREATE TEMP TABLE s_barcode ON COMMIT DROP AS
	SELECT * FROM hq.barcode :since;
ANALYZE s_barcode;

INSERT INTO translation (model, local_id, remote_id)
SELECT 7, coalesce(t.id, nextval('barcode_id_seq')), s.id
FROM s_barcode s
LEFT JOIN barcode t ON t.code = s.code
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 7 AND x.remote_id = s.id);

INSERT INTO barcode AS t (id, code, product_id, kind, updated_at)
SELECT x.local_id, s.code, p6.local_id, s.kind, s.updated_at
FROM s_barcode s
JOIN translation x ON x.model = 7 AND x.remote_id = s.id
JOIN translation p6 ON p6.model = 6 AND p6.remote_id = s.product_id
ON CONFLICT (id) DO UPDATE SET
	code = excluded.code, product_id = excluded.product_id,
	kind = excluded.kind, updated_at = excluded.updated_at
WHERE (t.code, t.product_id, t.kind, t.updated_at)
	IS DISTINCT FROM (excluded.code, excluded.product_id, excluded.kind,
		excluded.updated_at);

-- price_list
CREATE TEMP TABLE s_price_list ON COMMIT DROP AS
	SELECT * FROM hq.price_list :since;
ANALYZE s_price_list;

INSERT INTO translation (model, local_id, remote_id)
SELECT 8, coalesce(t.id, nextval('price_list_id_seq')), s.id
FROM s_price_list s
LEFT JOIN price_list t ON t.code = s.code
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 8 AND x.remote_id = s.id);

INSERT INTO price_list AS t (id, code, name, updated_at)
SELECT x.local_id, s.code, s.name, s.updated_at
FROM s_price_list s
JOIN translation x ON x.model = 8 AND x.remote_id = s.id
ON CONFLICT (id) DO UPDATE SET
	code = excluded.code, name = excluded.name,
	updated_at = excluded.updated_at
WHERE (t.code, t.name, t.updated_at)
	IS DISTINCT FROM (excluded.code, excluded.name, excluded.updated_at);

-- price_list_line
CREATE TEMP TABLE s_price_list_line ON COMMIT DROP AS
	SELECT * FROM hq.price_list_line :since;
ANALYZE s_price_list_line;

INSERT INTO translation (model, local_id, remote_id)
SELECT 9, coalesce(t.id, nextval('price_list_line_id_seq')), s.id
FROM s_price_list_line s
JOIN translation l ON l.model = 8 AND l.remote_id = s.price_list_id
JOIN translation p ON p.model = 6 AND p.remote_id = s.product_id
LEFT JOIN price_list_line t ON t.price_list_id = l.local_id
	AND t.product_id = p.local_id
WHERE NOT EXISTS (SELECT FROM translation x
				  WHERE x.model = 9 AND x.remote_id = s.id);

INSERT INTO price_list_line AS t (id, price_list_id, product_id, price,
	min_qty, updated_at)
SELECT x.local_id, p8.local_id, p6.local_id, s.price, s.min_qty, s.updated_at
FROM s_price_list_line s
JOIN translation x ON x.model = 9 AND x.remote_id = s.id
JOIN translation p8 ON p8.model = 8 AND p8.remote_id = s.price_list_id
JOIN translation p6 ON p6.model = 6 AND p6.remote_id = s.product_id
ON CONFLICT (id) DO UPDATE SET
	price_list_id = excluded.price_list_id, product_id = excluded.product_id,
	price = excluded.price, min_qty = excluded.min_qty,
	updated_at = excluded.updated_at
WHERE (t.price_list_id, t.product_id, t.price, t.min_qty, t.updated_at)
	IS DISTINCT FROM (excluded.price_list_id, excluded.product_id,
		excluded.price, excluded.min_qty, excluded.updated_at);

COMMIT;
