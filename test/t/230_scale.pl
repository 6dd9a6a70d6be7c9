# Nothing grows with the square of anything: many tables, many columns, long
# chains, many references to one row, many rows.  Times are in the log of the
# test; a limit is set so far off that only a wrong way of doing it reaches it.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Copy;
use Test::More;
use Time::HiRes qw(time);

my $limit = $ENV{POSSYNC_SCALE_LIMIT} // 20;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');

# The same database on both sides; the master's has data.
sub prepare
{
	my ($dbname, $tables, $data) = @_;

	$_->safe_psql('postgres', "CREATE DATABASE $dbname") for $master, $till;
	run_sql($_, $dbname, $tables) for $master, $till;
	run_sql($master, $dbname, $data);
	connect_till($till, $master->port, dbname => $dbname, remote => $dbname);
	return;
}

# Runs SQL, checks its last line and that it took its time.
sub timed
{
	my ($dbname, $sql, $expected, $name) = @_;
	my $start = time;
	my $got = (split /\n/, run_sql($till, $dbname, $sql))[-1];
	my $seconds = time - $start;

	is($got, $expected, $name);
	cmp_ok($seconds, '<', $limit, "$name: in time");
	note(sprintf '%s: %.2f s', $name, $seconds);
	return $seconds;
}

sub pull
{
	my ($model) = @_;
	return "SELECT status, rows_created, rows_matched, rows_updated, rows_unchanged, rows_left_out FROM possync_pull('$model')";
}

# 300 tables, 40 of which are a tree: each refers to the three before it, and
# others to them
{
	my ($tables, $data) = ('', '');
	for my $i (1 .. 300)
	{
		my @references = $i <= 40 ? grep { $_ > 0 } $i - 3 .. $i - 1 : $i - 40;
		$tables .= "CREATE TABLE t$i (id serial PRIMARY KEY, code text UNIQUE NOT NULL"
		  . join('', map { ", r$_ integer NOT NULL REFERENCES t$_" } @references) . ");\n";
		$data .= "INSERT INTO t$i (code" . join('', map { ", r$_" } @references)
		  . ') SELECT i' . join('', map { ', i' } @references) . " FROM generate_series(1, 10) i;\n" if $i <= 40;
	}
	prepare('tables', $tables, $data);
	timed('tables', "SELECT count(*) FROM possync_add_model('t40', server => 'hq')", '40', '40 of 300 tables configured');
	timed('tables', pull('t40'), 'ok|400|0|0|0|0', '40 tables pulled');
	timed('tables', pull('t40'), 'ok|0|0|0|400|0', '40 tables compared');
}

# 300 columns
{
	my $columns = join '', map { ", c$_ " . (qw(integer text numeric timestamptz boolean))[ $_ % 5 ] } 1 .. 300;
	my $values = join '', map { ', ' . (qw(i i i now() i%2=0))[ $_ % 5 ] } 1 .. 300;
	prepare('columns', "CREATE TABLE wide (id serial PRIMARY KEY, code integer UNIQUE NOT NULL$columns)",
		"INSERT INTO wide (code" . join('', map { ", c$_" } 1 .. 300) . ") SELECT i$values FROM generate_series(1, 1000) i");
	run_sql($till, 'columns', "INSERT INTO wide (code, c2) SELECT 501 - i, 0 FROM generate_series(1, 500) i");
	run_sql($till, 'columns', "SELECT * FROM possync_add_model('wide', server => 'hq')");
	timed('columns', pull('wide'), 'ok|500|500|500|0|0', '300 columns pulled');
	timed('columns', pull('wide'), 'ok|0|0|0|0|0', '300 columns compared');
}

# Long chains, stored in an order that is of no help.  Where a row is recognised
# by what it refers to, every step of the chain takes a round of its own.
for my $kind ('recognised', 'created')
{
	my $recognised = $kind eq 'recognised';
	my ($dbname, $n) = ("chain_$kind", $recognised ? 1000 : 5000);
	my $half = $n / 2;
	prepare($dbname, 'CREATE TABLE node (id serial PRIMARY KEY, parent integer REFERENCES node, name text NOT NULL)', <<"EOC");
INSERT INTO node (id, parent, name)
SELECT i * 7919 % 5003, CASE WHEN i > 1 THEN (i - 1) * 7919 % 5003 END, 'n' FROM generate_series(1, $n) i ORDER BY i DESC;
EOC
	run_sql($till, $dbname, "SELECT * FROM possync_add_model('node', server => 'hq')");
	run_sql($till, $dbname, <<"EOC") if $recognised;
INSERT INTO node (id, parent, name) SELECT i, nullif(i - 1, 0), 'n' FROM generate_series(1, $half) i;
SELECT setval('node_id_seq', $half);
SELECT possync_set_field('node', name, match => true) FROM unnest('{parent,name}'::name[]) name;
EOC
	timed($dbname, pull('node'), $recognised ? "ok|$half|$half|0|$half|0" : "ok|$n|0|0|0|0", "a chain of $n $kind");
	my $unchanged = $n > 1000 ? 0 : $n;    # small tables are read, others compared by hashes
	timed($dbname, pull('node'), "ok|0|0|0|$unchanged|0", "a chain of $n compared");
	is(run_sql($till, $dbname, <<'EOC'), $n, 'as long as it was');
WITH RECURSIVE down AS (
	SELECT id, 1 AS depth FROM node WHERE parent IS NULL
	UNION ALL SELECT n.id, depth + 1 FROM node n JOIN down d ON n.parent = d.id)
SELECT max(depth) FROM down
EOC
}

# A thousand rows that refer to one, and one that is referred to by all tables
{
	prepare('fan', 'CREATE TABLE hub (id serial PRIMARY KEY, code text UNIQUE NOT NULL);'
		. 'CREATE TABLE spoke (id serial PRIMARY KEY, code text UNIQUE NOT NULL' . join('', map { ", h$_ integer REFERENCES hub" } 1 .. 100) . ')',
		"INSERT INTO hub (code) VALUES ('hub'); INSERT INTO spoke (code" . join('', map { ", h$_" } 1 .. 100) . ') SELECT i' . ', 1' x 100 . ' FROM generate_series(1, 1000) i');
	run_sql($till, 'fan', "SELECT * FROM possync_add_model('spoke', server => 'hq')");
	timed('fan', pull('spoke'), 'ok|1001|0|0|0|0', 'a hundred times a thousand references to one row');
	timed('fan', pull('spoke'), 'ok|0|0|0|1|0', 'and compared');
}

# Many rows, compared as there is no change column; four times as many may take
# six times as long
{
	my @seconds;
	for my $n (50_000, 200_000)
	{
		my $dbname = "rows_$n";
		prepare($dbname, 'CREATE TABLE item (id serial PRIMARY KEY, code text UNIQUE NOT NULL, price numeric)',
			"INSERT INTO item (code, price) SELECT 'C' || i, i / 100.0 FROM generate_series(1, $n) i");
		run_sql($till, $dbname, "INSERT INTO item (code, price) SELECT 'C' || i, i / 100.0 FROM generate_series($n / 2, 1, -1) i");
		run_sql($till, $dbname, "SELECT * FROM possync_add_model('item', server => 'hq')");
		my $half = $n / 2;
		timed($dbname, pull('item'), "ok|$half|$half|0|$half|0", "$n rows pulled, half of them recognised");
		push @seconds, timed($dbname, pull('item'), "ok|0|0|0|0|0", "$n rows compared");
		run_sql($master, $dbname, 'UPDATE item SET price = price + 1 WHERE id % 100 = 0');
		my $changed = $n / 100;
		timed($dbname, pull('item'), "ok|0|0|$changed|0|0", "$n rows compared, a hundredth changed");
	}
	cmp_ok($seconds[1], '<', 6 * $seconds[0] + 1, 'comparing is linear');
}

done_testing();
