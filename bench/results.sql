/*
 * bench/results.sql: what was measured, for one pull, compared with the
 * baselines of the same repetition, and against the targets.
 */
CREATE TABLE result (
	experiment text,
	rtt numeric,				-- ms
	variant text,
	rep integer,
	products integer,
	pulls integer,				-- measured together
	wall numeric,				-- us
	master numeric,				-- CPU, ns
	till numeric,
	clients numeric,
	trips numeric,				-- exchanges with the master, waited for or not
	memory numeric				-- private memory of the till's backend, kB
);
COPY result FROM :'results';

-- In ms.  A variant that ran with fewer rows is taken to be linear in them.
CREATE VIEW pull AS
	SELECT experiment, rtt, variant, rep, scale <> 1 AS scaled, trips, memory,
		wall * scale / pulls / 1e3 AS wall,
		master * scale / pulls / 1e6 AS master,
		till * scale / pulls / 1e6 AS till,
		clients * scale / pulls / 1e6 AS clients,
		(master + till + clients) * scale / pulls / 1e6 AS cpu
	FROM (SELECT *, (4 * max(products) OVER (PARTITION BY experiment, rtt)
					 + 238.0) / (4 * products + 238) AS scale
		  FROM result) r;

CREATE VIEW compared AS
	SELECT p.*, p.wall / c.wall AS wall_copy, p.wall / f.wall AS wall_fdw,
		p.cpu / nullif(f.cpu, 0) AS cpu_fdw
	FROM pull p
	LEFT JOIN pull c ON (c.experiment, c.rtt, c.rep, c.variant)
		= (p.experiment, p.rtt, p.rep, 'copy')
	LEFT JOIN pull f ON (f.experiment, f.rtt, f.rep, f.variant)
		= (p.experiment, p.rtt, p.rep, 'fdw');

CREATE FUNCTION median(numeric[]) RETURNS numeric
LANGUAGE sql IMMUTABLE
RETURN (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY v)::numeric
		FROM unnest($1) v);

CREATE VIEW target (experiment, what, measured, at_most, met) AS
	SELECT experiment, what, round(measured, 2), at_most, measured <= at_most
	FROM (
		SELECT 1, 'initial', 'wall, times fdw', median(array_agg(wall_fdw)), 0.9
		FROM compared
		WHERE experiment = 'initial' AND variant = 'possync'
		UNION ALL
		SELECT 2, 'initial', 'CPU, times fdw', median(array_agg(cpu_fdw)), 0.9
		FROM compared
		WHERE experiment = 'initial' AND variant = 'possync'
		UNION ALL
		SELECT 3, 'nothing', 'round trips waited for',
			floor(median(array_agg(wall / rtt))), 1
		FROM compared
		WHERE experiment = 'nothing' AND variant = 'possync' AND rtt > 0
		UNION ALL
		SELECT 4, 'nothing', 'wall, times fdw, slow network',
			median(array_agg(wall_fdw)), 0.05
		FROM compared
		WHERE experiment = 'nothing' AND variant = 'possync' AND rtt > 0
		UNION ALL
		SELECT 5, 'delta', 'wall, times fdw', median(array_agg(wall_fdw)), 0.9
		FROM compared
		WHERE experiment = 'delta' AND variant = 'possync'
		UNION ALL
		SELECT 6, 'memory', 'MB, work_mem + 64', max(memory) / 1024,
			pg_size_bytes(current_setting('work_mem')) / 1048576 + 64
		FROM compared
		WHERE experiment = 'memory' AND variant = 'possync'
	) t (n, experiment, what, measured, at_most)
	WHERE measured IS NOT NULL
	ORDER BY n;
