/*
 * bench/master.sql: the master's rows, for :products products.
 *
 * 4 x products + 238 rows, the same in every run.  Keys are sparse and start
 * high, so that none of them is ever right on the till by accident.  Times of
 * change lie in the past: a position may never run ahead of the clock.
 */
SELECT setseed(0.42);

INSERT INTO uom_category (id, code, name, updated_at)
SELECT 500000 + i * 7, 'UC' || i, 'Unit category ' || i, '2020-01-01'
FROM generate_series(1, 5) i;

INSERT INTO uom (id, code, name, category_id, factor, updated_at)
SELECT 600000 + i * 7, 'U' || i, 'Unit ' || i, 500000 + (1 + i % 5) * 7, i,
	'2020-01-01'
FROM generate_series(1, 20) i;

-- ten roots and three levels below them
INSERT INTO category (id, code, name, parent_id, updated_at)
SELECT 700000 + i * 7, 'CAT' || i, 'Category number ' || i,
	CASE WHEN i > 10 THEN 700000 + (1 + i / 10) * 7 END, '2020-01-01'
FROM generate_series(1, 200) i;

INSERT INTO tax (id, code, name, rate, updated_at)
SELECT 800000 + i * 7, 'TAX' || i, 'VAT rate ' || i, i / 100.0, '2020-01-01'
FROM generate_series(1, 10) i;

INSERT INTO price_list (id, code, name, updated_at)
SELECT 900000 + i * 7, 'PL' || i, 'Price list ' || i, '2020-01-01'
FROM generate_series(1, 3) i;

INSERT INTO template (id, code, name, description, category_id, uom_id,
	tax_id, list_price, cost_price, updated_at)
SELECT 10000000 + i * 3, 'TMPL-' || lpad(i::text, 8, '0'),
	'Product template ' || md5(i::text),
	'Long description of the article ' || md5((i * 7)::text) || ' in stock',
	700000 + (1 + i * 31 % 200) * 7, 600000 + (1 + i * 17 % 20) * 7,
	800000 + (1 + i * 13 % 10) * 7, round((random() * 100)::numeric, 2),
	round((random() * 60)::numeric, 2),
	timestamptz '2020-01-01' + i * interval '1 second'
FROM generate_series(1, :products::bigint) i;

INSERT INTO product (id, sku, template_id, variant, weight, updated_at)
SELECT 20000000 + i * 3, 'SKU' || substr(md5(i::text), 1, 10) || i,
	10000000 + i * 3, 'variant ' || i % 17,
	round((random() * 10)::numeric, 3),
	timestamptz '2020-01-01' + i * interval '1 second'
FROM generate_series(1, :products::bigint) i;

INSERT INTO barcode (id, code, product_id, kind, updated_at)
SELECT 30000000 + i * 3, (8400000000000 + i * 97)::text, 20000000 + i * 3,
	'EAN13', timestamptz '2020-01-01' + i * interval '1 second'
FROM generate_series(1, :products::bigint) i;

INSERT INTO price_list_line (id, price_list_id, product_id, price, updated_at)
SELECT 40000000 + i * 3, 900000 + (1 + i % 3) * 7, 20000000 + i * 3,
	round((random() * 100)::numeric, 2),
	timestamptz '2020-01-01' + i * interval '1 second'
FROM generate_series(1, :products::bigint) i;

VACUUM (ANALYZE);
