/*
 * bench/hot.sql: a till whose rows are updated in place: no indexes on the change
 * columns, which nothing here needs, and a tenth of each page left free.
 */
DROP INDEX template_updated_at_idx, product_updated_at_idx, barcode_updated_at_idx,
	price_list_line_updated_at_idx;
ALTER TABLE template SET (fillfactor = 90);
ALTER TABLE product SET (fillfactor = 90);
ALTER TABLE barcode SET (fillfactor = 90);
ALTER TABLE price_list_line SET (fillfactor = 90);
VACUUM (FULL) template;
VACUUM (FULL) product;
VACUUM (FULL) barcode;
VACUUM (FULL) price_list_line;
VACUUM (ANALYZE);
