/*
 * bench/restore.sql: takes all indexes, unique constraints and foreign keys
 * away, and prints the statements that make them again, in the order in which
 * pg_restore does.
 */
CREATE TEMP TABLE piece AS
	SELECT CASE contype WHEN 'f' THEN 3 ELSE 1 END AS pass,
		format('ALTER TABLE %s ADD CONSTRAINT %I %s;', conrelid::regclass,
			   conname, pg_get_constraintdef(oid)) AS make,
		format('ALTER TABLE %s DROP CONSTRAINT %I;', conrelid::regclass,
			   conname) AS remove
	FROM pg_constraint
	WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f')
	UNION ALL
	SELECT 2, pg_get_indexdef(indexrelid) || ';',
		format('DROP INDEX %s;', indexrelid::regclass)
	FROM pg_index i
	JOIN pg_class c ON c.oid = i.indrelid
	WHERE c.relnamespace = 'public'::regnamespace
		AND NOT EXISTS (SELECT FROM pg_constraint
						WHERE conrelid = indrelid AND conindid = indexrelid
							AND contype IN ('p', 'u'));

SELECT make FROM piece ORDER BY pass, make;
SELECT remove FROM piece ORDER BY pass DESC, make \gexec
