# What is scheduled runs by itself, as whom it should, and goes on after
# everything that may happen to it; databases come and go.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "shared_preload_libraries = 'possync'\nmax_worker_processes = 16\npossync.retry_max = '2s'\nrestart_after_crash = on\nlog_min_messages = warning");
sales_master($master);
$master->safe_psql('postgres', 'ALTER TABLE product ADD updated_at timestamptz NOT NULL DEFAULT now(); GRANT pg_read_all_stats TO clerk');

sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub processes { return on_till("SELECT coalesce(string_agg(concat_ws(' ', kind, direction), ', ' ORDER BY kind, direction), '') FROM possync_processes()"); }
# Waits until a query gives t; says so
sub becomes
{
	my ($node, $sql, $name, %options) = @_;
	my $began = time;
	my $end = $began + ($options{within} // 30);
	my $got = '';
	while (time < $end)
	{
		my ($status, $out) = $node->psql($options{dbname} // 'postgres', $sql);
		$got = $out // '';
		last if $got eq 't';
		usleep(20_000);
	}
	is($got, 't', sprintf '%s (%.1f s)', $name, time - $began);
	return time - $began;
}
sub says
{
	my ($sql, $pattern, $name) = @_;
	my ($status, $out, $err) = $till->psql('postgres', $sql);
	like($out . $err, $pattern, $name);
	return;
}

# A database gets the extension and a schedule while everything runs
is($till->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'possync launcher'"), '1', 'a launcher');
sales_till($till, $master->port);
on_till('ALTER TABLE product ADD updated_at timestamptz; SELECT possync_add_model($$product$$, server => $$hq$$)');
on_till("SELECT possync_set_model('product', change_columns => '{updated_at}')");
becomes($till, "SELECT count(*) = 0 FROM possync_processes() WHERE kind <> 'launcher'", 'no more than that without a schedule');
on_till("SELECT possync_schedule('product', 'pull', every => '1 second')");
becomes($till, "SELECT state = 'waiting' AND last_success IS NOT NULL FROM possync_status WHERE direction = 'pull' AND model = 'product'", 'a pull by itself');
is(processes(), 'launcher, runner pull, scheduler', 'by a runner');
on_master("INSERT INTO product (sku, price) VALUES ('NEW', 7)");
becomes($till, "SELECT count(*) = 1 FROM product WHERE sku = 'NEW'", 'what is new comes');
becomes($till, "SELECT max(runs) > 1 FROM synchronize_history WHERE direction = 'pull'", 'runs that find nothing share a row');
is(on_till("SELECT count(*) < 6 FROM synchronize_history"), 't', 'of history');

# Pushing as soon as something is sold
on_till("LISTEN possync; SELECT possync_schedule('sale', 'push', every => '1 hour')");
becomes($till, "SELECT count(*) = 1 FROM possync_processes() WHERE kind = 'runner' AND direction = 'push'", 'a runner for pushes');
on_till("SELECT sell('S-1', 'C1', 2)");
my $seconds = becomes($master, "SELECT count(*) = 1 FROM sale WHERE number = 'S-1'", 'a sale arrives');
cmp_ok($seconds, '<', 2, 'at once');
on_till("BEGIN; SELECT sell('S-2', 'C1', 2); ROLLBACK");
on_till("SELECT sell('S-' || i, 'C' || i % 3, 1) FROM generate_series(3, 30) i");
becomes($master, 'SELECT count(*) = 29 FROM sale', 'more of them');
my $listener = Possync::Session->new($till);
$listener->run('LISTEN possync');
on_till("SELECT sell('S-31', NULL, 1)");
becomes($master, "SELECT count(*) = 1 FROM sale WHERE number = 'S-31'", 'and one more');
becomes($till, "SELECT queued = 0 AND state = 'waiting' AND next_run > now() FROM possync_status WHERE direction = 'push'", 'status says so');
usleep(200_000);
like(($listener->run('SELECT 1'))[0], qr/"possync" with payload "\{"run": \d+, "direction": "push", "status": "ok", "model": "sale"\}"/, 'who listens is told');
is(on_till("SELECT runs > 0 AND failures = 0 AND rows_created > 0 FROM possync_counters WHERE direction = 'push'"), 't', 'and counters');

# What a monitoring agent asks: every query of the file that comes with possync
my $asked = 0;
my $collector = slurp_file('monitoring/possync.collector.yml');
while ($collector =~ /^( *)query: \|\n((?:\1 +.*\n)+)/mg)
{
	my $query = $2;
	on_till($query);
	$asked++;
}
is($asked, 4, 'the queries for monitoring work');

# A look at a run that works
my $stopper = Possync::Session->new($till);
on_master("UPDATE product SET price = price + 1, updated_at = clock_timestamp()");
$stopper->run('BEGIN; LOCK TABLE product IN EXCLUSIVE MODE');
becomes($till, "SELECT count(*) = 1 FROM possync_progress p JOIN possync_processes() r USING (pid) WHERE p.model = 'product' AND p.direction = 'pull' AND phase = 'writing' AND current_model = 'product' AND started_at < now()", 'progress shows a run that works');
is(on_till("SELECT state FROM possync_status WHERE model = 'product' AND direction = 'pull'"), 'running', 'so does status');
is(on_till("SELECT count(*) FROM pg_stat_activity WHERE query = 'pulling product' AND application_name = 'possync pull' AND state = 'active'"), '1', 'and the activity of its process');
$stopper->run('ROLLBACK');
becomes($till, 'SELECT count(*) = 0 FROM possync_progress', 'and nothing when it is done');

# Bad arguments
says("SELECT possync_schedule('product', 'sideways')", qr/invalid direction: sideways/, 'no direction');
says("SELECT possync_schedule('product', 'pull', every => '0')", qr/invalid value for every: 00:00:00/, 'too often');
says("SELECT possync_schedule('product', 'pull', every => '1 month')", qr/invalid value for every: 1 mon/, 'months differ');
says("SELECT possync_schedule('product', 'pull', every => '1 minute', jitter => '2 minutes')", qr/invalid value for jitter/, 'too much of chance');
says("SELECT possync_schedule('nothing', 'pull')", qr/"nothing"/, 'no such model');
says("SELECT possync_unschedule('customer')", qr/no run of model "customer" is scheduled/, 'nothing to end');
says("SELECT possync_pause()", qr/either a model or a server must be given/, 'nothing to pause');
says("SELECT possync_pause('customer')", qr/nothing is scheduled for model "customer"/, 'nothing to pause there');
says("SET ROLE pg_monitor; SELECT possync_schedule('product', 'pull')", qr/must be owner|permission denied/, 'not of tables of others');

# Pause and resume
on_till("SELECT possync_pause(server => 'hq')");
becomes($till, "SELECT count(*) = 0 FROM possync_processes() WHERE kind <> 'launcher'", 'paused, nothing runs');
on_till("SELECT sell('S-32', NULL, 1)");
is(on_till("SELECT string_agg(state, ' ') FROM possync_status WHERE owner IS NOT NULL"), 'paused paused', 'status says so');
on_till("SELECT possync_resume('sale')");
becomes($master, "SELECT count(*) = 1 FROM sale WHERE number = 'S-32'", 'resumed, what waited is sent');
on_till("SELECT possync_resume(server => 'hq')");

# A day is 24 hours, also where summer time begins in it
# at midnight, or at noon for who comes right after midnight: the hour that is left out
# must not be the one of the next run
my $noon = (gmtime)[2] < 2;
my $day = (gmtime(time + ($noon ? 0 : 86400)))[7] + 1;
my $zone = sprintf 'AAA0BBB,J%d/%d,J%d/0', $day, $noon ? 12 : 0, ($day + 30 - 1) % 365 + 1;
on_till("ALTER DATABASE postgres SET timezone = '$zone'");
is(on_till("SELECT now() + interval '1 day' = now() + interval '23 hours'"), 't', 'summer time begins within a day');
on_till("SELECT possync_schedule('product', 'pull', every => '1 day', jitter => '0')");
becomes($till, "SELECT extract(epoch FROM next_run - clock_timestamp()) BETWEEN 86370 AND 86400 FROM synchronize_schedule WHERE direction = 'pull'", 'the next run is in 24 hours');
on_till("SELECT possync_schedule('product', 'pull', every => '1 second'); ALTER DATABASE postgres RESET timezone");

# The master goes away, and comes back
$master->stop('immediate');
on_till("SELECT sell('S-33', NULL, 1)");
becomes($till, "SELECT bool_and(state = 'retrying' AND failures > 1 AND sqlstate IS NOT NULL AND last_error IS NOT NULL) FROM possync_status WHERE owner IS NOT NULL", 'the master is away');
is(on_till("SELECT max(next_run) < now() + interval '3 seconds' FROM synchronize_schedule"), 't', 'asked again, not too rarely');
$master->start;
$seconds = becomes($master, "SELECT count(*) = 1 FROM sale WHERE number = 'S-33'", 'back, and all is sent');
cmp_ok($seconds, '<', 4, 'within the longest wait');
becomes($till, "SELECT bool_and(state IN ('waiting', 'running') AND failures = 0 AND last_error IS NULL) FROM possync_status WHERE owner IS NOT NULL", 'nothing is wrong any more');

# A password that is wrong does not become right by waiting
on_till("ALTER USER MAPPING FOR CURRENT_USER SERVER hq OPTIONS (SET password 'wrong')");
becomes($till, "SELECT bool_or(state = 'failing' AND next_run > now() + interval '4 minutes') FROM possync_status WHERE direction = 'pull'", 'a wrong password');
on_till("ALTER USER MAPPING FOR CURRENT_USER SERVER hq OPTIONS (SET password 'secret')");
becomes($till, "SELECT bool_and(failures = 0) FROM synchronize_schedule", 'a right one is used at once');
unlike(join("\n", grep { !/^\t|LOG:  statement: / } split /\n/, slurp_file($till->logfile)), qr/'wrong'|secret/, 'neither is in the log but for the statements');

# A table that is gone
on_master('ALTER TABLE product RENAME TO products');
becomes($till, "SELECT state = 'failing' AND last_error LIKE '%do not fit together%' FROM possync_status WHERE model = 'product' AND direction = 'pull'", 'a table that is gone');
on_master('ALTER TABLE products RENAME TO product');
on_till("SELECT possync_schedule('product', 'pull', every => '1 second')");
becomes($till, "SELECT state IN ('waiting', 'running') AND failures = 0 FROM possync_status WHERE model = 'product' AND direction = 'pull'", 'and is there again');

# Killed in the middle, terminated, crashed
on_till("SELECT pg_terminate_backend(pid) FROM possync_processes() WHERE kind = 'runner'");
becomes($till, "SELECT count(*) = 2 FROM possync_processes() WHERE kind = 'runner'", 'runners that are terminated come back', within => 30);
on_till("SELECT pg_terminate_backend(pid) FROM possync_processes() WHERE kind = 'scheduler'");
becomes($till, "SELECT count(*) = 1 AND (SELECT count(*) = 2 FROM possync_processes() WHERE kind = 'runner') FROM possync_processes() WHERE kind = 'scheduler'", 'so does the scheduler');
on_till("SELECT pg_terminate_backend(pid) FROM possync_processes() WHERE kind = 'runner'");
becomes($till, "SELECT count(*) = 2 FROM possync_processes() WHERE kind = 'runner'", 'and runners that an earlier one had started', within => 30);
on_till("SELECT pg_terminate_backend(pid) FROM possync_processes() WHERE kind = 'launcher'");
becomes($till, "SELECT count(*) = 1 FROM possync_processes() WHERE kind = 'launcher'", 'so does the launcher', within => 30);
becomes($till, "SELECT count(*) = 2 FROM possync_processes() WHERE kind = 'runner'", 'with all of them', within => 30);
my $victim = on_till("SELECT pid FROM possync_processes() WHERE kind = 'runner' AND direction = 'pull'");
on_till("UPDATE synchronize_schedule SET started_at = now() WHERE direction = 'pull'; SELECT 1");
kill 'KILL', $victim;
becomes($till, "SELECT count(*) = 2 FROM possync_processes() WHERE kind = 'runner'", 'after a crash, too', within => 60);
on_till("SELECT sell('S-34', NULL, 1)");
becomes($master, "SELECT count(*) = 1 FROM sale WHERE number = 'S-34'", 'and they work');
$till->restart;
becomes($till, "SELECT count(*) = 2 FROM possync_processes() WHERE kind = 'runner'", 'after a restart, too', within => 30);
$till->stop('immediate');
$till->start;
on_till("UPDATE synchronize_schedule SET next_run = now() + interval '1 year' WHERE direction = 'pull'");
on_till("SELECT pg_terminate_backend(pid) FROM possync_processes() WHERE kind = 'runner'");
becomes($till, "SELECT next_run < now() + interval '1 minute' FROM synchronize_schedule WHERE direction = 'pull'", 'a clock that was set back does not stop a job');

# Databases come and go
$till->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE postgres');
pass('a database with jobs can be copied');
is($till->safe_psql('copy', "SELECT string_agg(state, ' ') FROM possync_status WHERE owner IS NOT NULL AND next_run IS NULL"), 'copied copied', 'they do not run in the copy');
is(on_till("SELECT count(*) FROM possync_status WHERE state = 'copied'"), '0', 'but in the original');
$till->safe_psql('copy', "SELECT possync_resume('sale')");
becomes($till, "SELECT string_agg(direction, ' ') = 'push' FROM possync_processes() p JOIN pg_database d ON d.oid = p.database WHERE d.datname = 'copy' AND kind = 'runner'", 'but for what is resumed', within => 30);
like(slurp_file($till->logfile), qr/jobs in database "copy" do not run: they were set up in another one/, 'as the log says');
$till->safe_psql('copy', "SELECT possync_schedule('product', 'pull', every => '1 second')");
becomes($till, "SELECT count(DISTINCT database) = 2 FROM possync_processes() WHERE kind = 'runner'", 'the copy has jobs of its own');
$till->safe_psql('postgres', 'DROP DATABASE copy');
becomes($till, "SELECT count(DISTINCT database) = 1 FROM possync_processes() WHERE kind = 'runner'", 'it can be dropped', within => 30);
$till->safe_psql('postgres', 'CREATE DATABASE other');
$till->safe_psql('other', 'CREATE EXTENSION possync; DROP EXTENSION possync; CREATE EXTENSION possync');
$till->safe_psql('postgres', 'DROP DATABASE other');
pass('and one without jobs');

# A role's job does what the role may do
on_till(<<'EOC');
CREATE ROLE clerk2 LOGIN;
GRANT USAGE ON FOREIGN SERVER hq TO clerk2;
CREATE USER MAPPING FOR clerk2 SERVER hq OPTIONS (user 'clerk', password 'secret');
CREATE TABLE tax (id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE);
ALTER TABLE tax OWNER TO clerk2;
CREATE TABLE spy (who text, session text);
GRANT INSERT ON spy TO PUBLIC;
CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO spy VALUES (current_user, session_user); RETURN NULL; END $$;
CREATE TRIGGER spy AFTER INSERT ON tax FOR EACH ROW EXECUTE FUNCTION spy();
EOC
on_master("CREATE TABLE tax (id serial PRIMARY KEY, code text NOT NULL UNIQUE); INSERT INTO tax (code) VALUES ('VAT')");
on_till("SET ROLE clerk2; SELECT possync_add_model('tax', server => 'hq')");
on_till("SET ROLE clerk2; SELECT possync_schedule('tax', 'pull')");
becomes($till, 'SELECT count(*) = 1 FROM tax', "a job of another role's");
is(on_till('SELECT DISTINCT who || $$ $$ || session FROM spy'), 'clerk2 clerk2', 'runs as that role');

# The server stops at once, the extension can go
my $began = time;
$till->stop('fast');
cmp_ok(time - $began, '<', 5, sprintf 'the server stops (%.1f s)', time - $began);
$till->start;
becomes($till, "SELECT count(*) > 1 FROM possync_processes() WHERE kind = 'runner'", 'and starts', within => 30);
on_till('DROP EXTENSION possync CASCADE');
becomes($till, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'possync%' AND backend_type <> 'possync launcher'", 'without the extension nothing runs');

# Not preloaded
$till->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$till->restart;
on_till('CREATE EXTENSION possync');
connect_till($till, $master->port) if on_till("SELECT count(*) FROM pg_foreign_server") eq '0';
on_till('SELECT possync_add_model($$product$$, server => $$hq$$)');
says("SELECT possync_schedule('product', 'pull')", qr/WARNING:  nothing runs by itself yet: possync is not preloaded\nHINT:  Add possync to shared_preload_libraries/, 'not preloaded, scheduling warns');
is(on_till("SELECT state FROM possync_status WHERE owner IS NOT NULL"), 'not preloaded', 'status says so');
is(on_till("SELECT status FROM possync_pull('product')"), 'ok', 'a pull works');

done_testing();
