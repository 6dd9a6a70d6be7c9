/*
 * bench/report.sql: the report.
 */
SELECT count(*) > 0 AS times FROM result \gset
\if :times
\pset title 'Times in ms: median, least and most of one pull or push; CPU of master + till + clients'
SELECT experiment, rtt, variant || CASE WHEN bool_or(scaled) THEN ' *' ELSE '' END AS variant,
	count(*) AS n,
	round(median(array_agg(wall)), 2) AS wall,
	round(min(wall), 2) AS min,
	round(max(wall), 2) AS max,
	round(median(array_agg(cpu)), 2) AS cpu,
	round(median(array_agg(master)), 2) AS master,
	round(median(array_agg(till)), 2) AS till,
	round(median(array_agg(clients)), 1) AS clients,
	round(median(array_agg(wall_copy)), 2) AS "wall/copy",
	round(median(array_agg(wall_fdw)), 3) AS "wall/fdw",
	round(median(array_agg(wall_restore)), 2) AS "wall/restore",
	round(median(array_agg(wall_logical)), 2) AS "wall/logical",
	round(median(array_agg(cpu_fdw)), 3) AS "cpu/fdw",
	round(median(array_agg(till_plain)), 3) AS "till/plain",
	round(median(array_agg(trips)), 1) AS trips,
	round(max(memory) / 1024, 1) AS "MB"
FROM compared
GROUP BY experiment, rtt, variant
ORDER BY array_position(ARRAY['initial', 'rtt', 'nothing', 'poll', 'again', 'delta', 'hot', 'memory', 'push',
		'sale', 'recover', 'capture', 'sellers', 'bulk', 'backlog', 'selling', 'paced'], experiment),
	rtt, array_position(ARRAY['copy', 'restore', 'selects', 'fdw', 'row', 'logical', 'mimeo', 'update', 'possync'], variant),
	variant;
\endif

SELECT count(*) > 0 AS wire FROM wire \gset
\if :wire
\pset title 'Bytes on the wire, to the master (up) and from it (down), and as ssh -C sends them'
SELECT what, variant, n,
	round(up / n, 1) AS up,
	round(down / n, 1) AS down,
	round((up + down) / n, 1) AS both,
	round((up + down) / n / max((up + down) / n) FILTER (WHERE variant = 'copy') OVER w, 2) AS "both/copy",
	round((up_small + down_small) / n, 1) AS "ssh -C",
	round((up_small + down_small) / (up + down), 2) AS "of plain",
	round((up + down) / nullif(up_cpu + down_cpu, 0) / 1e6) AS "MB/s"
FROM wire
WINDOW w AS (PARTITION BY what)
ORDER BY array_position(ARRAY['pulled row', 'poll', 'pushed row'], what),
	array_position(ARRAY['copy', 'fdw', 'possync'], variant);
\endif

\pset title 'Targets'
SELECT experiment, what, measured, at_most AS "at most",
	CASE WHEN met THEN 'met' ELSE 'MISSED' END AS target
FROM target;
\pset title
\echo '* measured with fewer products or sales and scaled by rows'
