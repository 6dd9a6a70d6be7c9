/*
 * bench/results.sql: what was measured, for one pull, compared with the
 * baselines of the same repetition, and against the targets.
 */
CREATE TABLE result (
	experiment text,
	rtt numeric,				-- ms
	variant text,
	rep integer,
	products integer,			-- or sales, if they are pushed
	pulls integer,				-- measured together
	wall numeric,				-- us
	master numeric,				-- CPU, ns
	till numeric,
	clients numeric,
	trips numeric,				-- exchanges with the master, waited for or not
	memory numeric				-- private memory of the till's backend, kB
);
COPY result FROM :'results';

-- Bytes on the wire, to the master and from it, plain and compressed, with the
-- seconds of CPU that compressing takes.
CREATE TABLE wire (
	what text,
	variant text,
	n numeric,					-- rows, polls, or sales
	up numeric, up_small numeric, up_cpu numeric,
	down numeric, down_small numeric, down_cpu numeric
);
COPY wire FROM :'wires';

-- In ms.  A variant that ran with fewer rows is taken to be linear in them.
CREATE VIEW pull AS
	SELECT experiment, rtt, variant, rep, products, scale <> 1 AS scaled, trips, memory,
		wall * scale / pulls / 1e3 AS wall,
		master * scale / pulls / 1e6 AS master,
		till * scale / pulls / 1e6 AS till,
		clients * scale / pulls / 1e6 AS clients,
		(master + till + clients) * scale / pulls / 1e6 AS cpu
	FROM (SELECT *, CASE experiment
			WHEN 'push' THEN 1.0 * max(products) OVER w / products
			ELSE (4 * max(products) OVER w + 238.0) / (4 * products + 238) END
			AS scale
		  FROM result WINDOW w AS (PARTITION BY experiment, rtt)) r;

-- Each beside the others of its repetition.
CREATE VIEW compared AS
	SELECT p.*, p.wall / c.wall AS wall_copy, p.wall / f.wall AS wall_fdw,
		p.cpu / nullif(f.cpu, 0) AS cpu_fdw, p.wall / r.wall AS wall_row,
		p.wall / s.wall AS wall_restore, p.wall / l.wall AS wall_logical,
		p.wall / o.wall AS wall_plain, p.till / nullif(o.till, 0) AS till_plain,
		p.till - o.till AS till_more
	FROM pull p
	LEFT JOIN pull c ON (c.experiment, c.rtt, c.rep, c.variant)
		= (p.experiment, p.rtt, p.rep, 'copy')
	LEFT JOIN pull f ON (f.experiment, f.rtt, f.rep, f.variant)
		= (p.experiment, p.rtt, p.rep, 'fdw')
	LEFT JOIN pull r ON (r.experiment, r.rtt, r.rep, r.variant)
		= (p.experiment, p.rtt, p.rep, 'row')
	LEFT JOIN pull s ON (s.experiment, s.rtt, s.rep, s.variant)
		= (p.experiment, p.rtt, p.rep, 'restore')
	LEFT JOIN pull l ON (l.experiment, l.rtt, l.rep, l.variant)
		= (p.experiment, p.rtt, p.rep, 'logical')
	LEFT JOIN pull o ON (o.experiment, o.rtt, o.rep, o.variant)
		= (p.experiment, p.rtt, p.rep, 'plain');

CREATE FUNCTION median(numeric[]) RETURNS numeric
LANGUAGE sql IMMUTABLE
RETURN (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY v)::numeric
		FROM unnest($1) v);

CREATE VIEW target (n, experiment, what, measured, at_most, met) AS
	SELECT n, experiment, what, round(measured, 5), at_most, measured <= at_most
	FROM (
		SELECT 1, 'initial', 'wall, times fdw', median(array_agg(wall_fdw)),
			CASE WHEN max(products) < 1000000 THEN 0.25 ELSE 0.20 END
		FROM compared
		WHERE experiment = 'initial' AND variant = 'possync'
		UNION ALL
		SELECT 1.1, 'initial', 'wall, times copy', median(array_agg(wall_copy)), 0.33
		FROM compared
		WHERE experiment = 'initial' AND variant = 'possync'
		UNION ALL
		SELECT 1.2, 'initial', 'wall, times restore',
			median(array_agg(wall_restore)),
			CASE WHEN max(products) < 1000000 THEN 0.5 ELSE 1.0 END
		FROM compared
		WHERE experiment = 'initial' AND variant = 'possync'
		UNION ALL
		SELECT 2, 'initial', 'CPU, times fdw', median(array_agg(cpu_fdw)), 0.9
		FROM compared
		WHERE experiment = 'initial' AND variant = 'possync'
		UNION ALL
		SELECT 3, 'nothing', 'ms beyond 1.1 round trips',
			median(array_agg(wall - 1.1 * rtt)), 1
		FROM compared
		WHERE experiment = 'nothing' AND variant = 'possync' AND rtt > 0
		UNION ALL
		SELECT 4, 'nothing', 'wall, times fdw, slow network',
			median(array_agg(wall_fdw)), 0.04
		FROM compared
		WHERE experiment = 'nothing' AND variant = 'possync' AND rtt > 0
		UNION ALL
		SELECT 4.1, 'poll', 'CPU of the master, us',
			median(array_agg(master * 1000)), 50
		FROM compared WHERE experiment = 'poll' AND variant = 'possync'
		UNION ALL
		SELECT 4.2, 'poll', 'CPU of the master with change logs, us',
			median(array_agg(master * 1000)), 50
		FROM compared WHERE experiment = 'poll' AND variant = 'logged'
		UNION ALL
		SELECT 4.3, 'again', 'us a row',
			median(array_agg(wall * 1000 / (4 * products + 238))), 5
		FROM compared WHERE experiment = 'again' AND variant = 'possync'
		UNION ALL
		SELECT CASE experiment WHEN 'delta' THEN 5 ELSE 5.2 END, experiment,
			'wall, times fdw', median(array_agg(wall_fdw)), 0.4
		FROM compared
		WHERE experiment IN ('delta', 'hot') AND variant = 'possync'
		GROUP BY experiment
		UNION ALL
		SELECT CASE experiment WHEN 'delta' THEN 5.1 ELSE 5.3 END, experiment,
			'wall, times logical', median(array_agg(wall_logical)), 1.0
		FROM compared
		WHERE experiment IN ('delta', 'hot') AND variant = 'possync'
		GROUP BY experiment
		UNION ALL
		SELECT 6, 'memory', 'MB, work_mem + 64', max(memory) / 1024,
			pg_size_bytes(current_setting('work_mem')) / 1048576 + 64
		FROM compared
		WHERE experiment = 'memory' AND variant = 'possync'
		UNION ALL
		SELECT 7, 'push', 'wall, times row, slow network',
			median(array_agg(wall_row)), 0.001
		FROM compared
		WHERE experiment = 'push' AND variant = 'possync' AND rtt > 0
		UNION ALL
		SELECT 8, 'push', 'wall, times fdw, slow network',
			median(array_agg(wall_fdw)), 0.4
		FROM compared
		WHERE experiment = 'push' AND variant = 'possync' AND rtt > 0
		UNION ALL
		SELECT 8.1, 'push', 'wall, times logical, slow network',
			median(array_agg(wall_logical)), 1.3
		FROM compared
		WHERE experiment = 'push' AND variant = 'possync' AND rtt > 0
		UNION ALL
		SELECT 9, 'sale', 'ms beyond two round trips',
			median(array_agg(wall - 2 * rtt)), 20
		FROM compared WHERE experiment = 'sale'
		UNION ALL
		-- a wait of 8 seconds at most, as it was away so long, and the push
		SELECT 9.5, 'recover', 'ms until all is there', max(wall), 10000
		FROM compared WHERE experiment = 'recover'
		UNION ALL
		SELECT 10, 'capture', 'CPU of the till, times plain',
			median(array_agg(till_plain)), 1.15
		FROM compared WHERE experiment = 'capture' AND variant = 'queued'
		UNION ALL
		SELECT 11, 'bulk', 'CPU of the till, us a row more',
			median(array_agg(till_more)), 10
		FROM compared WHERE experiment = 'bulk' AND variant = 'queued'
		UNION ALL
		SELECT 12, 'sellers', 'wall, times plain, beside that of one',
			median(array_agg(s.wall_plain / c.wall_plain)), 1.1
		FROM compared s JOIN compared c USING (rep, variant)
		WHERE s.experiment = 'sellers' AND c.experiment = 'capture'
			AND variant = 'queued'
		UNION ALL
		SELECT 13, 'backlog', 'MB, work_mem + 64', max(memory) / 1024,
			pg_size_bytes(current_setting('work_mem')) / 1048576 + 64
		FROM compared
		WHERE experiment = 'backlog' AND variant = 'possync'
		UNION ALL
		SELECT 14, 'backlog', 'wall, last quarter times first',
			max(wall) FILTER (WHERE variant = 'last') /
			max(wall) FILTER (WHERE variant = 'first'), 1.2
		FROM compared WHERE experiment = 'backlog'
		UNION ALL
		SELECT 15, experiment, 'wall during a push, times beside two busy loops',
			max(wall) FILTER (WHERE variant = 'pushing') /
			max(wall) FILTER (WHERE variant = 'busy'), 1.1
		FROM compared WHERE experiment IN ('selling', 'paced')
		GROUP BY experiment
	) t (n, experiment, what, measured, at_most)
	WHERE measured IS NOT NULL
	ORDER BY n;
