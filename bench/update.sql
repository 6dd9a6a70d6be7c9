/*
 * bench/update.sql: writes what has changed, and nothing else: the rows are here and
 * their local keys known.  Index look-ups, as nothing less reads a hundredth of a table.
 */
BEGIN;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL enable_seqscan = off;
UPDATE template t SET list_price = c.list_price, updated_at = c.updated_at
FROM changed_template c WHERE t.id = c.id;
UPDATE product t SET weight = c.weight, updated_at = c.updated_at
FROM changed_product c WHERE t.id = c.id;
UPDATE barcode t SET kind = c.kind, updated_at = c.updated_at
FROM changed_barcode c WHERE t.id = c.id;
UPDATE price_list_line t SET price = c.price, updated_at = c.updated_at
FROM changed_price_list_line c WHERE t.id = c.id;
COMMIT;
