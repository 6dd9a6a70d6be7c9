-- Head office: a new product on a new shelf, a price, and a name.
WITH shelf AS (
	INSERT INTO category (parent, code, name)
	SELECT id, 'C1.1.new', 'Novelties' FROM category WHERE code = 'C1'
	RETURNING id
), template AS (
	INSERT INTO template (code, name, category, tax, sale_unit, list_price)
	SELECT 'T-LAMP', 'reading lamp', shelf.id, tax.id, unit.id, 39.90
	FROM shelf, tax, unit
	WHERE tax.code = 'S' AND unit.symbol = 'pc'
	RETURNING id
), product AS (
	INSERT INTO product (template, sku, variant, cost_price)
	SELECT id, 'P-LAMP', 'brass', 21.50 FROM template
	RETURNING id
)
INSERT INTO barcode (product, code) SELECT id, '4006381333931' FROM product;

UPDATE product SET cost_price = 7.77 WHERE sku = 'P0000042';
UPDATE template SET name = 'dark ginger soap, 100 g' WHERE code = 'T000017';
