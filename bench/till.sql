/*
 * bench/till.sql: what a till knows before its first pull.
 *
 * A few rows that must be recognised and brought up to date instead of made a
 * second time; their keys run against the master's.  Nothing is analyzed: so
 * is a till on its first day.
 */
INSERT INTO uom_category (code, name)
SELECT 'UC' || i, 'local ' || i FROM generate_series(5, 1, -1) i;

INSERT INTO uom (code, name, category_id, factor)
SELECT 'U' || i, 'local ' || i, 1 + i % 5, i FROM generate_series(20, 1, -1) i;

INSERT INTO tax (code, name, rate)
SELECT 'TAX' || i, 'local ' || i, 0 FROM generate_series(10, 1, -1) i;
