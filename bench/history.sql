/*
 * bench/history.sql: what a run has to say in the table at the top of
 * RESULTS.md, in the order of its columns.
 */
SELECT string_agg(coalesce(' ' || measured, ' ') || ' |', '' ORDER BY n)
FROM unnest(ARRAY[1, 1.1, 1.2, 3, 4, 4.1, 4.2, 7, 8, 8.1, 5, 5.1, 5.2, 5.3, 4.3]) WITH ORDINALITY c(target, n)
LEFT JOIN (SELECT n AS target, round(measured, CASE WHEN measured < 0.01 THEN 5
		WHEN measured < 10 THEN 3 ELSE 1 END) AS measured FROM target) t USING (target);
