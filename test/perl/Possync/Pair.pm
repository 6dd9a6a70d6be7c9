# A master and a till with a pull between them, for tests of what pulls do.
#
# here(SQL) and there(SQL) run at the till and at the master.  pull() pulls for
# real after a dry run, which must have touched nothing and promised the same;
# quiet() expects that a pull writes nothing.

package Possync::Pair;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use Possync;
use Test::More;

our @EXPORT = qw(pair $counts $traces here there pull quiet quarantine);

my ($master, $till);

our $counts = "concat_ws('|', status, rows_read, rows_created, rows_matched, rows_updated,"
  . " rows_unchanged, rows_left_out, error)";

# What a run that touches nothing leaves alone: positions of sequences, versions
# of rows
our $traces = <<'EOC';
SELECT string_agg(x, E'\n') FROM (
	SELECT schemaname || sequencename || coalesce(last_value, 0) AS x FROM pg_sequences
	UNION ALL
	SELECT relname || ' ' || coalesce((xpath('/row/c/text()', query_to_xml(
		format('SELECT md5(string_agg(xmin || ctid::text || t::text, $$,$$ ORDER BY ctid)) AS c FROM %s t', c.oid::regclass),
		false, true, '')))[1]::text, '')
	FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
	ORDER BY 1) t
EOC

# Makes the two clusters and connects the till; returns them.
sub pair
{
	$master = Possync->cluster('master');
	$till = Possync->cluster('till', 'autovacuum = off');
	connect_till($till, $master->port);
	return ($master, $till);
}

sub here { return $till->safe_psql('postgres', $_[0]) }
sub there { return $master->safe_psql('postgres', $_[0]) }

sub pull
{
	my ($model, $expected, $name, $role) = @_;
	my $set = $role ? "SET ROLE $role;" : '';
	my $before = here($traces);
	my ($s1, $promised) = $till->psql('postgres', "$set SELECT $counts FROM possync_pull('$model', dry_run => true)");
	is(here($traces), $before, "$name: a dry run touches nothing");
	unlike(here("EXPLAIN (ANALYZE, WAL, COSTS OFF) SELECT possync_pull('$model', dry_run => true)"),
		qr/WAL:/, "$name: nor the log") if !$role;
	my ($s2, $done, $err) = $till->psql('postgres', "$set SELECT $counts FROM possync_pull('$model')");
	like($done, ref $expected ? $expected : qr/^\Q$expected\E$/, $name) || diag($err);
	is($promised, $done =~ s/^ok/dry run/r, "$name: as the dry run said") if $done =~ /^ok\|/;
	return $done;
}

sub quiet
{
	my ($model, $name) = @_;
	my $before = here($traces) =~ s/^.*synchronize_history.*$//mgr;
	my $done = here("SELECT concat_ws('|', status, rows_created, rows_matched, rows_updated) FROM possync_pull('$model')");
	is($done, 'ok|0|0|0', "$name: nothing to do");
	is(here($traces) =~ s/^.*synchronize_history.*$//mgr, $before, "$name: and nothing was written");
	return;
}

sub quarantine
{
	return here("SELECT string_agg(concat_ws(' ', m.name, remote_key, q.reason, candidates), ', ' ORDER BY m.name, remote_key)"
		  . ' FROM synchronize_quarantine q JOIN synchronize_model m ON m.id = q.model');
}

1;
