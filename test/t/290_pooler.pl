# PgBouncer in transaction mode between till and master: pulls work, also when
# every transaction gets another server session, and it may be restarted.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Pooler;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'PgBouncer is not installed' unless Possync::Pooler->installed;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $catalogue = "SELECT * FROM catalogue WHERE what NOT LIKE 'price%' ORDER BY what, key";
my $pooler = Possync::Pooler->new($master);
my $port = $pooler->port;
my $step = 0;

shop($master, products => 300, first_key => 1000001, office => 'on');
shop($till, products => 20);
connect_till($till, $port);
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('product', server => 'hq'); SELECT possync_set_field('unit', 'symbol', match => true)");

sub change
{
	$step++;
	$master->safe_psql('postgres', <<"EOC");
UPDATE product SET cost_price = cost_price + 1;
UPDATE barcode SET updated_at = now();
INSERT INTO product (template, sku, cost_price) SELECT min(id), 'NEW$step', 1 FROM template;
EOC
	return;
}

$pooler->start;
my @sessions = map { Possync::Session->new($till) } 1 .. 2;
my $pull = "SELECT status FROM possync_pull('product')";

is(($sessions[0]->run($pull))[0], 'ok', 'first pull');
is_same($master, $till, $catalogue, 'both sides say the same');
for my $round (1 .. 4)
{
	change();
	is(($sessions[0]->run($pull))[0], 'ok', "round $round");
	is(($sessions[1]->run("SELECT rows_created + rows_updated FROM possync_pull('product')"))[0], '0', "round $round: another session");
	is_same($master, $till, $catalogue, "round $round: both sides say the same");
}

# Nothing is left in the pool's sessions that others get
$master->safe_psql('postgres', "SELECT pg_sleep(0.2)");
{
	local $ENV{PGPASSWORD} = 'secret';
	for (1 .. 4)
	{
		my $out = '';
		IPC::Run::run([ 'psql', '-qXAt', '-d', "host=127.0.0.1 port=$port dbname=postgres user=clerk", '-c',
			"SELECT concat_ws(' ', current_setting('search_path'), current_setting('statement_timeout'), current_setting('extra_float_digits'), current_setting('transaction_read_only'))" ],
			'>' => \$out);
		is($out, qq{"\$user", public 0 1 off\n}, 'a session of the pool has its own settings');
	}
}
is($master->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk' AND state <> 'idle'"), '0', 'no transaction stays open');

# A poll that finds nothing is one statement, prepared once in every session of
# the pool, whoever asks; also if somebody throws away what is prepared there.
$master->safe_psql('postgres', "ALTER ROLE clerk SET log_statement = 'all'; GRANT pg_read_all_stats TO clerk");
$_->safe_psql('postgres', "CREATE TABLE voucher (id serial PRIMARY KEY, code text UNIQUE, changed_at timestamptz NOT NULL DEFAULT now()); GRANT SELECT ON voucher TO clerk") for $master, $till;
$master->safe_psql('postgres', "INSERT INTO voucher (code) VALUES ('a'), ('b')");
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('voucher', server => 'hq')");
sleep 1;
sub restart_pooler { $pooler->stop('INT'); $pooler->start; return }
sub statements
{
	my ($polls) = @_;
	my $offset = -s $master->logfile;
	for (1 .. $polls)
	{
		for my $session (@sessions)
		{
			is(($session->run("SELECT status FROM possync_pull('voucher')"))[0], 'ok', 'polled');
		}
	}
	my $log = slurp_file($master->logfile, $offset);
	return (scalar(() = $log =~ /execute (?:possync|PGBOUNCER)_/g), scalar(() = $log =~ /BEGIN/g), scalar(() = $log =~ /ERROR:  prepared statement/g));
}
# the snapshot alone is another statement, after some polls that saw the same
if ($pooler->keep_statements(100))
{
	restart_pooler();
	statements(10);
	is(join(' ', statements(6)), '12 0 0', 'a poll is one statement where the pooler keeps it');
	$pooler->keep_statements(0);
}
restart_pooler();
statements(10);
is(join(' ', statements(6)), '12 0 0', 'a poll is one statement');
{
	local $ENV{PGPASSWORD} = 'secret';
	for (1 .. 2)
	{
		IPC::Run::run([ 'psql', '-qXAt', '-d', "host=127.0.0.1 port=$port dbname=postgres user=clerk", '-c', 'DEALLOCATE ALL' ], '>' => \my $out);
	}
}
my (undef, $begun, $missed) = statements(6);
is($begun, 0, 'no snapshot is opened where statements are gone');
cmp_ok($missed, '>', 0, 'but they are noticed');
is(join(' ', statements(6)), '12 0 0', 'and prepared again');
$master->safe_psql('postgres', "ALTER ROLE clerk RESET log_statement");

# Restarted between two pulls: nobody notices.  Killed: the same.
for my $signal ('INT', 'KILL')
{
	change();
	$pooler->stop($signal);
	like(($sessions[0]->run($pull))[0], qr/^failed/, "$signal: it is gone");
	$pooler->start;
	is(($sessions[$_]->run($pull))[0], 'ok', "$signal: it is back, session $_") for 0, 1;
	is_same($master, $till, $catalogue, "$signal: both sides say the same");
	$pooler->stop($signal);
	$pooler->start;
	change();
	is(($sessions[$_]->run($pull))[0], 'ok', "$signal: restarted between pulls, session $_") for 0, 1;
	is_same($master, $till, $catalogue, "$signal: both sides say the same");
}

# The master goes and comes behind it
change();
$master->restart;
my ($out) = $sessions[0]->run($pull);
like($out, qr/^(ok|failed)$/, "the master restarted: $out");
is(($sessions[0]->run($pull))[0], 'ok', 'and again') if $out ne 'ok';
is_same($master, $till, $catalogue, 'both sides say the same');

$_->quit for @sessions;
$pooler->stop('KILL');
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|XX000/, 'nothing leaked');
done_testing();
