/*
 * bench/change.sql: a day at the master: one row in a hundred of the four big
 * tables changes, spread over all their pages.
 */
UPDATE template SET list_price = list_price + 1, updated_at = now()
WHERE id / 3 % 100 = 7;

UPDATE product SET weight = weight + 1, updated_at = now()
WHERE id / 3 % 100 = 7;

UPDATE barcode SET kind = 'EAN14', updated_at = now()
WHERE id / 3 % 100 = 7;

UPDATE price_list_line SET price = price + 1, updated_at = now()
WHERE id / 3 % 100 = 7;

VACUUM (ANALYZE);
