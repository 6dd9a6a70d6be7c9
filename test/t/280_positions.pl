# Nothing is lost between two pulls: rows that are committed late, that have
# the same time stamp, or none, or one of another kind; and a master that is
# not the same any more.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "max_prepared_transactions = 5\nwal_level = replica\nmax_wal_senders = 3\n";
my $master = Possync->cluster('master', $conf);
my $till = Possync->cluster('till');

# By type of the change column, how a row says that it changed
my %stamps = (
	timestamptz => 'now()',
	timestamp => "(now() AT TIME ZONE 'UTC')",
	date => "(now() AT TIME ZONE 'UTC')::date",
	bigint => "nextval('change')",
	xid8 => 'pg_current_xact_id()');

for my $node ($master, $till)
{
	$node->safe_psql('postgres', 'CREATE SEQUENCE change');
	$node->safe_psql('postgres', <<"EOC") for sort keys %stamps;
CREATE TABLE t_$_ (id serial PRIMARY KEY, code text NOT NULL UNIQUE, n integer, changed $_ DEFAULT $stamps{$_});
CREATE INDEX ON t_$_ (changed);
EOC
	$node->safe_psql('postgres', 'CREATE TABLE two (id serial PRIMARY KEY, code text NOT NULL UNIQUE, n integer, create_date timestamptz DEFAULT now(), write_date timestamptz)');
}
connect_till($till, $master->port);
$till->safe_psql('postgres', join ';', map { "SELECT * FROM possync_add_model('t_$_', server => 'hq'); SELECT possync_set_model('t_$_', change_columns => '{changed}')" } sort keys %stamps);
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('two', server => 'hq'); SELECT possync_set_model('two', change_columns => '{create_date,write_date}')");
my $session = Possync::Session->new($till);

sub pull
{
	my ($table) = @_;
	return ($session->run("SELECT status FROM possync_pull('$table')"))[0];
}

sub same
{
	my ($table, $name) = @_;
	is(pull($table), 'ok', "$name: pulled");
	is_same($master, $till, "SELECT code, n FROM $table ORDER BY 1", "$name: nothing is missing");
	return;
}

for my $rights ('without', 'with')
{
	$master->safe_psql('postgres', 'GRANT pg_read_all_stats TO clerk') if $rights eq 'with';
	for my $type (sort keys %stamps)
	{
		my $table = "t_$type";
		my $name = "$type, $rights pg_read_all_stats";
		my $stamp = $stamps{$type};
		my $write = sub {
			my ($code) = @_;
			return "INSERT INTO $table (code, n) VALUES ('$code $rights', 1) ON CONFLICT (code) DO UPDATE SET n = $table.n + 1, changed = $stamp";
		};

		$master->safe_psql('postgres', $write->($_)) for 'a', 'b', 'c';
		same($table, $name);

		my $late = Possync::Session->new($master);
		$late->run("BEGIN;\n" . $write->('late') . ";\n" . $write->('a'));
		$master->safe_psql('postgres', $write->('early'));
		same($table, "$name, one is late");
		same($table, "$name, again");
		$master->safe_psql('postgres', $write->('b'));
		same($table, "$name, another change");
		$late->run('COMMIT');
		$late->quit;
		same($table, "$name, and committed");

		my $prepared = Possync::Session->new($master);
		$prepared->run("BEGIN;\n" . $write->('prepared') . ";\nPREPARE TRANSACTION 'p'");
		$prepared->quit;
		$master->safe_psql('postgres', $write->('early'));
		same($table, "$name, one is prepared") for 1 .. 2;
		$master->safe_psql('postgres', "COMMIT PREPARED 'p'");
		same($table, "$name, and committed");
	}
}

# The same time for many, and changes that keep it
for my $type (sort keys %stamps)
{
	my $table = "t_$type";
	$master->safe_psql('postgres', "BEGIN; INSERT INTO $table (code, changed) SELECT 'same ' || i, $stamps{$type} FROM generate_series(1, 500) i; COMMIT");
	same($table, "$type, many at once");
	if ($type ne 'xid8')	# no transaction comes again
	{
		$master->safe_psql('postgres', "INSERT INTO $table (code, changed) SELECT 'equal', changed FROM $table WHERE changed IS NOT NULL ORDER BY changed DESC LIMIT 1");
		same($table, "$type, one more of the same time");
	}

	$master->safe_psql('postgres', "INSERT INTO $table (code, changed) VALUES ('null', NULL)");
	same($table, "$type, none");
	$master->safe_psql('postgres', "UPDATE $table SET n = 5 WHERE code = 'null'");
	same($table, "$type, none, changed");
	$master->safe_psql('postgres', "UPDATE $table SET changed = $stamps{$type}, n = 6 WHERE code = 'null'");
	same($table, "$type, one after all");
}

# When it was made, and when it was changed, if it ever was
$master->safe_psql('postgres', "INSERT INTO two (code, n) VALUES ('a', 1), ('b', 1), ('c', 1)");
same('two', 'two columns');
$master->safe_psql('postgres', "UPDATE two SET n = 2, write_date = now() WHERE code = 'a'; INSERT INTO two (code, n) VALUES ('d', 1)");
same('two', 'two columns, changed and new');
$master->safe_psql('postgres', "INSERT INTO two (code, n, create_date) VALUES ('e', 1, NULL)");
same('two', 'two columns, both null');

# Clocks of the future and of the past
$master->safe_psql('postgres', "INSERT INTO t_timestamptz (code, changed) VALUES ('future', now() + interval '1 year'), ('infinity', 'infinity')");
same('t_timestamptz', 'a time of the future');
$master->safe_psql('postgres', "INSERT INTO t_timestamptz (code) VALUES ('now')");
same('t_timestamptz', 'and one of now');
$master->safe_psql('postgres', "UPDATE t_timestamptz SET n = 77 WHERE code = 'future'");
same('t_timestamptz', 'changed with its time kept');

# Only what is new is read, or positions would be of no use
$master->safe_psql('postgres', "UPDATE t_timestamptz SET changed = now() - interval '1 day' WHERE changed > now()");
same('t_timestamptz', 'quiet');
sleep 1;
pull('t_timestamptz') for 1 .. 2;
cmp_ok(($session->run("SELECT rows_read FROM possync_pull('t_timestamptz')"))[0], '<', 20, 'little is read');

# What was read is not read again, also while it is too young to be passed by
$master->safe_psql('postgres', 'REVOKE pg_read_all_stats FROM clerk');
for my $type (sort keys %stamps)
{
	my $read = "SELECT rows_read FROM possync_pull('t_$type')";
	pull("t_$type") for 1 .. 2;
	$master->safe_psql('postgres', "INSERT INTO t_$type (code) SELECT 'young ' || i FROM generate_series(1, 200) i");
	is(join(' ', map { ($session->run($read))[0] } 1 .. 3), '200 0 0', "$type: young rows are read once");
}

# Nor is the work of a subtransaction taken for seen because its parent is older
for my $type (sort keys %stamps)
{
	my $late = Possync::Session->new($master);
	$late->run("BEGIN;\nSELECT pg_current_xact_id();\nSAVEPOINT s;\nINSERT INTO t_$type (code) VALUES ('sub');\nRELEASE SAVEPOINT s");
	$master->safe_psql('postgres', "INSERT INTO t_$type (code) VALUES ('beside sub')");
	same("t_$type", "$type: a subtransaction is open") for 1 .. 2;
	$late->run('COMMIT');
	$late->quit;
	same("t_$type", "$type: and committed");
}

# Whatever stamps do not tell, a sweep finds: a transaction longer than the
# overlap, stamps that are kept or set back, a clock that was set back
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (ADD overlap '100ms', ADD sweep '1h')");
for my $type (grep { $_ ne 'xid8' } sort keys %stamps)
{
	my $table = "t_$type";
	my $missing = sub { return $till->safe_psql('postgres', "SELECT count(*) FILTER (WHERE code = 'long') || ' ' || count(*) FILTER (WHERE n = 88) FROM $table") };
	my $long = Possync::Session->new($master);
	$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET sweep '1ms')");
	pull($table);
	$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET sweep '0')");
	pull($table) for 1 .. 3;
	$long->run("BEGIN;\nINSERT INTO $table (code) VALUES ('long');\nSELECT pg_sleep(0.5)");
	$master->safe_psql('postgres', "INSERT INTO $table (code) VALUES ('longer')");
	pull($table) for 1 .. 3;
	$long->run('COMMIT');
	$long->quit;
	$master->safe_psql('postgres', "UPDATE $table SET n = 88, changed = (SELECT min(changed) FROM $table) WHERE code = 'early with'");
	pull($table);
	like($missing->(), $type eq 'date' ? qr/^1 / : $type eq 'bigint' ? qr/^1 0/ : qr/^0 0/, "$type: what its stamps cannot tell is passed by");
	$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET sweep '1ms')");
	is(($session->run("SELECT rows_read < 10 FROM possync_pull('$table')"))[0], 't', "$type: a sweep reads little");
	is($missing->(), '1 1', "$type: and finds all");
	is_same($master, $till, "SELECT code, n FROM $table ORDER BY 1", "$type: nothing is missing");
}
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET sweep '1h', SET overlap '10min')");
pull('t_timestamptz');
$till->safe_psql('postgres', "UPDATE synchronize_position p SET position = jsonb_set(position::jsonb, '{changed}', to_jsonb(now() + interval '1 hour')) FROM synchronize_model m WHERE m.id = p.model AND m.name = 't_timestamptz'");
$master->safe_psql('postgres', "UPDATE t_timestamptz SET n = 99, changed = now() WHERE code = 'early with'");
same('t_timestamptz', 'a clock that was set back');
$master->safe_psql('postgres', "UPDATE t_timestamp SET changed = now() + interval '1 year' WHERE code = 'b'");
pull('t_timestamp') for 1 .. 2;
$master->safe_psql('postgres', "INSERT INTO t_timestamp (code) VALUES ('beside a stamp of the future')");
same('t_timestamp', 'a stamp of the future');

# The master is restored from a backup and goes another way
pull($_) for map { "t_$_" } sort keys %stamps;
$session->quit;
$master->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'clerk'");
$master->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
$session = Possync::Session->new($till);
pull("t_$_") for sort keys %stamps;
for my $type (sort keys %stamps)
{
	# in the copy something else was written at times that are past
	my $old = $master->safe_psql('postgres', "SELECT min(changed::text) FROM t_$type");
	$master->safe_psql('copy', "INSERT INTO t_$type (code, changed) VALUES ('restored', '$old')");
}
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET dbname 'copy')");
for my $type (sort keys %stamps)
{
	my $table = "t_$type";
	is(pull($table), 'ok', "$type: another source");
	is($till->safe_psql('postgres', "SELECT count(*) FROM $table WHERE code = 'restored'"), '1', "$type: is read whole");
	is($till->safe_psql('postgres', "SELECT count(*) - count(DISTINCT code) FROM $table"), '0', "$type: and nothing is doubled");
}

# Wherever the till stands: a sweep is due an hour after the last one, not sooner
for my $zone ('America/New_York', 'Asia/Tokyo')
{
	my $swept = "SELECT (position::jsonb ->> 'swept_at')::timestamptz AT TIME ZONE 'UTC' FROM synchronize_position p JOIN synchronize_model m ON m.id = p.model WHERE m.name = 't_timestamptz'";
	my $elsewhere = Possync::Session->new($till);
	$elsewhere->run("SET timezone = '$zone'");
	is(($elsewhere->run("SELECT status FROM possync_pull('t_timestamptz', full => true)"))[0], 'ok', "$zone: read whole");
	my $before = ($elsewhere->run($swept))[0];
	is($till->safe_psql('postgres', "SET timezone = '$zone'; SELECT '$before'::timestamp BETWEEN (now() AT TIME ZONE 'UTC') - interval '1 minute' AND (now() AT TIME ZONE 'UTC')"), 't', "$zone: the time of a sweep is that of the master");
	$master->safe_psql('copy', "INSERT INTO t_timestamptz (code) VALUES ('in $zone')");
	is(($elsewhere->run("SELECT rows_read FROM possync_pull('t_timestamptz')"))[0], '1', "$zone: a row is read");
	is(($elsewhere->run($swept))[0], $before, "$zone: and not by a sweep");
	$elsewhere->quit;
}

# A standby takes over that lacks the last transactions, and gives their numbers
# to others.
$session->quit;
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET dbname 'postgres')");
$master->safe_psql('postgres', "GRANT pg_read_all_stats TO clerk");
$master->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($master, 'backup', has_streaming => 1);
$standby->start;
$master->wait_for_catchup('standby');
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->reload;
$standby->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_wal_receiver');
$session = Possync::Session->new($till);
$master->safe_psql('postgres', "INSERT INTO t_$_ (code) VALUES ('lost')") for sort keys %stamps;
$master->safe_psql('postgres', 'SELECT pg_current_xact_id()') for 1 .. 30;
for my $table (map { "t_$_" } sort keys %stamps)
{
	is(pull($table), 'ok', "$table: pulled from the first") for 1 .. 3;
}
$master->stop('immediate');
$standby->promote;
$standby->safe_psql('postgres', "INSERT INTO t_$_ (code) VALUES ('after')") for sort keys %stamps;
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET port '" . $standby->port . "')");
for my $table (map { "t_$_" } sort keys %stamps)
{
	is(pull($table), 'ok', "$table: pulled from the standby that took over");
	is($standby->safe_psql('postgres', "SELECT count(*) FROM $table WHERE code = 'lost'"), '0', "$table: it lacks something");
	is($till->safe_psql('postgres', "SELECT count(*) FROM $table WHERE code = 'after'"), '1', "$table: and nothing of it is taken for seen");
}

# Both clocks are the same here, so they differ by no more than a round trip.
# With no difference allowed, that is too much.
is($till->safe_psql('postgres', "SELECT bool_and(abs(extract(epoch FROM clock_offset)) < 0.5) AND count(DISTINCT clock_offset) > 2 FROM synchronize_history WHERE status = 'ok'"), 't', 'history has the offset of the clocks');
is($till->safe_psql('postgres', "SELECT bool_and(clock_offset IS NOT NULL AND lag < interval '1 hour') FROM possync_status WHERE direction = 'pull' AND model <> 'two'"), 't', 'so has status');
my ($result, $out, $err) = $till->psql('postgres', "SELECT possync_pull('two')");
is($err, '', 'no warning');
$till->append_conf('postgresql.conf', 'possync.clock_offset_max = 0');
$till->reload;
$till->poll_query_until('postgres', "SELECT setting = '0' FROM pg_file_settings WHERE name = 'possync.clock_offset_max'");
sleep 1;
($result, $out, $err) = $till->psql('postgres', "SELECT possync_pull('two')");
like($err, qr/^psql:<stdin>:1: WARNING:  the clock of server "hq" is 0 seconds (ahead of|behind) ours\nDETAIL:  One of the two is wrong. Synchronization does not depend on it.$/, 'a warning');

$session->quit;
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|XX000/, 'nothing leaked');

done_testing();
