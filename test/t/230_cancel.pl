# Whatever a pull waits for, it answers within a second when it is cancelled,
# and the session, and the next pull, are as good as before.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $master = Possync->cluster('master', 'wal_level = replica');
my $till = Possync->cluster('till', "wal_level = replica\n");
my $proxy = Possync::Proxy->new($master->port);
my $catalogue = "SELECT * FROM catalogue WHERE what NOT LIKE 'price%' ORDER BY what, key";
my $step = 0;

shop($master, products => 300, first_key => 1000001, office => 'on');
shop($till, products => 20);
connect_till($till, $proxy->port);
$till->safe_psql('postgres', <<"EOC");
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT possync_set_field('unit', 'symbol', match => true);
EOC
my $session = Possync::Session->new($till);
my $pull = "SELECT status FROM possync_pull('product')";

sub change
{
	$step++;
	$master->safe_psql('postgres', <<"EOC");
UPDATE product SET cost_price = cost_price + 1;
UPDATE template SET list_price = list_price + 1;
UPDATE barcode SET updated_at = now();
UPDATE category SET name = name || ' $step' WHERE code = 'C1';
INSERT INTO product (template, sku, cost_price) SELECT min(id), 'NEW$step', 1 FROM template;
INSERT INTO barcode (product, code) SELECT id, lpad('$step', 13, '9') FROM product WHERE sku = 'NEW$step';
EOC
	return;
}
change();
is(($session->run($pull))[0], 'ok', 'first pull');

my %ways = (
	cancel => sub { $till->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')') },
	terminate => sub { $till->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $session->pid . ')') });

# Makes the session wait, ends it in every way, and makes it go on.
sub answers
{
	my ($name, $break, $state, $mend, $sql) = @_;

	for my $way (sort keys %ways)
	{
		change();
		my $before = content($till);
		my $history = $till->safe_psql('postgres', 'SELECT count(*) FROM synchronize_history');
		$break->();
		$session->start_sql($sql // $pull);
		$session->wait_until($state);
		select undef, undef, undef, 0.2;
		$session->mark;
		$ways{$way}->();
		my ($out, $err, $seconds) = $session->answer(30);
		cmp_ok($seconds, '<', 1, "$name: $way answers");
		like($err, $way eq 'cancel' ? qr/ERROR:  canceling statement due to user request/
			: qr/FATAL:  terminating connection due to administrator command/, "$name: and says so");
		if ($way eq 'terminate')
		{
			$session->quit;
		}
		else
		{
			is(($session->run('SELECT 6 * 7'))[0], '42', "$name: the session lives on");
		}
		$mend->();
		$session = Possync::Session->new($till) if $way eq 'terminate';
		is(content($till), $before, "$name: nothing changed");
		is($till->safe_psql('postgres', 'SELECT count(*) FROM synchronize_history'), $history, "$name: nothing recorded");
		is(($session->run($pull))[0], 'ok', "$name: the next one succeeds");
		is_same($master, $till, $catalogue, "$name: and is complete");
	}
	return;
}

my $waits = "state = 'active' AND wait_event_type = 'Extension'";
my $pass = sub { $proxy->cut; $proxy->pass };

answers('connecting', sub { $proxy->cut; $proxy->blackhole }, $waits, $pass);
answers('the answer to the first question', sub { $proxy->blackhole }, $waits, $pass);
answers('rows, the network stalled', sub { $proxy->cut; $proxy->hole_after(20_000) }, $waits, $pass);
{
	my $blocker;
	answers('a lock at the master',
		sub { $blocker = Possync::Session->new($master); $blocker->run('BEGIN; LOCK TABLE template') },
		$waits, sub { $blocker->run('ROLLBACK'); $blocker->quit });
	answers('a local row',
		sub { $blocker = Possync::Session->new($till); $blocker->run("BEGIN; UPDATE product SET active = active WHERE sku = 'P0000042'") },
		"wait_event_type = 'Lock'", sub { $blocker->run('ROLLBACK'); $blocker->quit });
	answers('a local table',
		sub { $blocker = Possync::Session->new($till); $blocker->run('BEGIN; LOCK TABLE product') },
		"wait_event_type = 'Lock'", sub { $blocker->run('ROLLBACK'); $blocker->quit });
	answers('another pull',
		sub { $blocker = Possync::Session->new($till); $blocker->run("BEGIN; SELECT possync_pull('product')") },
		"wait_event_type = 'Lock'", sub { $blocker->run('ROLLBACK'); $blocker->quit });
}
answers('the master working',
	sub { $master->safe_psql('postgres', 'ALTER TABLE barcode RENAME TO awake; CREATE VIEW barcode AS SELECT id, product, code, CASE WHEN row_number() OVER (ORDER BY id) = 250 THEN updated_at + pg_sleep(60)::text::interval ELSE updated_at END AS updated_at FROM awake') },
	$waits,
	sub { $master->safe_psql('postgres', 'DROP VIEW barcode; ALTER TABLE awake RENAME TO barcode') });
answers('a trigger of the till',
	sub { $till->safe_psql('postgres', 'CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$; CREATE TRIGGER slow AFTER INSERT ON barcode FOR EACH ROW EXECUTE FUNCTION slow()') },
	"wait_event = 'PgSleep'",
	sub { $till->safe_psql('postgres', 'DROP TRIGGER slow ON barcode; DROP FUNCTION slow') });

# Many rows, so that computing takes its time
$_->safe_psql('postgres', 'CREATE TABLE big (id bigserial PRIMARY KEY, code text NOT NULL, word text); '
	. "INSERT INTO big (code, word) SELECT md5(i::text), md5((i*7)::text) FROM generate_series(1, 150000) i")
  for $master, $till;
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('big', server => 'hq'); SELECT possync_set_field('big', 'code', match => true)");
for my $delay (0.3, 0.6, 0.9, 1.2)
{
	$session->start_sql("SELECT status FROM possync_pull('big')");
	select undef, undef, undef, $delay;
	$session->mark;
	$ways{cancel}->();
	my ($out, $err, $seconds) = $session->answer(30);
	cmp_ok($seconds, '<', 1, "reading and matching for $delay s: answers");
	last if $out eq 'ok';
	is($till->safe_psql('postgres', 'SELECT count(*) FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model WHERE m.name = $$big$$'),
		'0', 'nothing was written');
}

# A time limit of the till's
change();
$proxy->blackhole;
my ($out, $err, $seconds) = $session->run("SET statement_timeout = '300ms';\n$pull");
like($err, qr/canceling statement due to statement timeout/, 'statement_timeout');
cmp_ok($seconds, '<', 1.3, 'in time');
$pass->();
is(($session->run("SET statement_timeout = 0;\n$pull"))[0], 'ok', 'and it goes on');

# The till itself dies in the middle
change();
$master->safe_psql('postgres', 'ALTER TABLE barcode RENAME TO awake; CREATE VIEW barcode AS SELECT id, product, code, CASE WHEN row_number() OVER (ORDER BY id) = 250 THEN updated_at + pg_sleep(60)::text::interval ELSE updated_at END AS updated_at FROM awake');
my $before = content($till);
$session->start_sql($pull);
$session->wait_until($waits);
my ($postmaster) = split /\n/, slurp_file($till->data_dir . '/postmaster.pid');
my @processes = ($postmaster, $session->pid);
$till->kill9;
kill 'KILL', @processes;
for (1 .. 100)
{
	last unless kill 0, @processes;
	select undef, undef, undef, 0.1;
}
$session->quit;
$till->start;
is(content($till), $before, 'the till killed: nothing half');
$master->safe_psql('postgres', 'DROP VIEW barcode; ALTER TABLE awake RENAME TO barcode');
is($till->safe_psql('postgres', $pull), 'ok', 'the till killed: the next one succeeds');
is_same($master, $till, $catalogue, 'the till killed: and is complete');
$master->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'clerk'", 't');
is($master->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk' AND state = 'active'"), '0',
	'the master works for nobody any more');
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|signal 11|signal 6/, 'nothing leaked');

done_testing();
