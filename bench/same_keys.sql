/*
 * bench/same_keys.sql: the view "linked" where a row's key is the master's:
 * on the master itself, and on a till filled by plain COPY.
 */
CREATE VIEW linked (relation, local_key, remote_key) AS
	SELECT 'uom_category', id, id FROM uom_category
	UNION ALL SELECT 'uom', id, id FROM uom
	UNION ALL SELECT 'category', id, id FROM category
	UNION ALL SELECT 'tax', id, id FROM tax
	UNION ALL SELECT 'template', id, id FROM template
	UNION ALL SELECT 'product', id, id FROM product
	UNION ALL SELECT 'barcode', id, id FROM barcode
	UNION ALL SELECT 'price_list', id, id FROM price_list
	UNION ALL SELECT 'price_list_line', id, id FROM price_list_line
	UNION ALL SELECT 'sale', id, id FROM sale
	UNION ALL SELECT 'sale_line', id, id FROM sale_line
	UNION ALL SELECT 'payment', id, id FROM payment;
