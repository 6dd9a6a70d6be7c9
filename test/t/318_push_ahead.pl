# The rows of a batch are at the master before it is known whether the one before it
# has arrived, and come to nothing unless the till says so: whoever dies or refuses
# in between, every sale arrives once, whole, and in order.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Proxy;
use Possync::Sales;
use Possync::Session;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "restart_after_crash = on\nwal_level = replica\nmax_wal_senders = 2");
my $proxy = Possync::Proxy->new($master->port);
sales_master($master);
sales_till($till, $proxy->port, first_key => 100);

sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }

# So many sales in transactions of their own, of nine entries each
my $sold = 0;
sub sell
{
	my ($n) = @_;
	on_till(join ';', map { $sold++; "SELECT sell('s' || to_char($sold, 'FM0000'), NULL, 3)" } 1 .. $n);
	return;
}

sub all_there
{
	my ($test) = @_;
	is_same($till, $master, $sales, "$test: every sale");
	is(on_master($doubled) . on_master($broken), '', "$test: once and whole");
	is(on_till('SELECT (SELECT count(*) FROM synchronize_batch), (SELECT count(*) FROM synchronize_queue)'), '0|0', "$test: nothing is left");
	return;
}

# What the master has of this session: rows that are not committed are not seen
sub idle { return on_master("SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk' AND state LIKE 'idle in transaction%'"); }

on_till('ALTER DATABASE postgres SET possync.batch_entries = 40');

# The commit of the till takes long: meanwhile the rows of the next batch are at the
# master, and nobody sees them
on_master(<<'EOC');
CREATE TABLE arrived (number text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION arrive() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO arrived VALUES (NEW.number); RETURN NEW; END $$;
CREATE TRIGGER arrive BEFORE INSERT ON sale FOR EACH ROW EXECUTE FUNCTION arrive();
GRANT INSERT ON arrived TO clerk;
EOC
sell(40);
is(push_sales($till), 'ok', 'many batches');
all_there('many batches');
is(on_master('SELECT count(*), count(DISTINCT number) FROM arrived'), '40|40', 'each row was sent once');

# Somebody dies when the rows of the next batch have been sent, and before they are known
# to be there; or when they are there, and the end of it has not been sent
for my $fault (map { my $how = $_; map { "$how: push $_" } 'beside', 'ahead' } 'error', 'exit', 'kill')
{
	sell(40);
	my $before = on_master('SELECT count(*) FROM sale');
	on_till("ALTER DATABASE postgres SET possync.fault = '$fault'");
	push_sales($till);
	for (1 .. 300)
	{
		my $status = eval { ($till->psql('postgres', 'SELECT 1'))[0] };
		last if defined $status && $status == 0;
		usleep(100_000);
	}
	$till->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'possync worker%')}) or die 'a push does not end';
	on_till('ALTER DATABASE postgres RESET possync.fault');
	$master->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'clerk' AND state <> 'idle')}) or die 'the master is still at it';
	my $after = on_master('SELECT count(*) FROM sale');
	is(on_master($doubled) . on_master($broken), '', "$fault: what has arrived is whole");
	cmp_ok($after, '<', $before + 40, "$fault: not all") if $fault !~ /^error/;
	is(push_sales($till), 'ok', "$fault: pushed");
	all_there($fault);
	is(on_master('SELECT count(*) - count(DISTINCT number) FROM arrived'), '0', "$fault: what is on its way is awaited, and not sent again") if $fault =~ /^error/;
}

# One that is refused by its rows, and one that is refused by the end of its
# transaction, while the next is there already
on_master(<<'EOC');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.number LIKE 'bad%' THEN RAISE EXCEPTION 'refused' USING ERRCODE = 'check_violation'; END IF;
	RETURN NULL;
END $$;
EOC
for my $when ('', 'DEFERRABLE INITIALLY DEFERRED')
{
	my $name = $when ? 'at the end' : 'at once';
	on_master("DROP TRIGGER IF EXISTS refuse ON sale; CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON sale $when FOR EACH ROW EXECUTE FUNCTION refuse()");
	sell(10);
	on_till("SELECT sell('bad$name', NULL, 2)");
	sell(30);
	is(push_sales($till), 'ok', "refused $name");
	is(on_till("SELECT string_agg(concat_ws(' ', reason, sqlstate), ', ') FROM possync_quarantine"), 'error 23514', "refused $name: it is held")
	  or diag(on_till('SELECT * FROM possync_quarantine'));
	is(on_master('SELECT count(*) FROM sale') + 1, on_till('SELECT count(*) FROM sale'), "refused $name: all others are there");
	is(on_master($doubled) . on_master($broken), '', "refused $name: once and whole");
	on_master('DROP TRIGGER refuse ON sale');
	on_till("SELECT possync_retry(id) FROM possync_quarantine");
	is(push_sales($till), 'ok', "refused $name: and now it is not");
	all_there("refused $name");
}

# The network breaks after so many bytes
for my $bytes (map { 4000 * $_ } 1 .. 12)
{
	sell(20);
	$proxy->cut_after($bytes);
	push_sales($till);
	$proxy->pass;
	sell(1);
	my $done = '';
	for (1 .. 10)
	{
		$done = push_sales($till);
		last if $done eq 'ok';
	}
	is($done, 'ok', "cut after $bytes bytes");
}
all_there('cuts');

# The user mapping is made anew while one batch is at the master, and the next one goes
# through another session: it does not wait for its own rows
on_master("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END'; CREATE TRIGGER slow BEFORE INSERT ON sale FOR EACH ROW EXECUTE FUNCTION slow()");
on_till("ALTER SERVER hq OPTIONS (ADD statement_timeout '5s')");
sell(40);
my ($role, $options) = split /\t/, on_till("SELECT usename || chr(9) || (SELECT string_agg(format('%I %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ') FROM unnest(umoptions) o) FROM pg_user_mappings");
my $renewer = Possync::Session->new($till);
$renewer->start_sql(join ';', map { "BEGIN; LOCK TABLE sale; SELECT pg_sleep(0.3); DROP USER MAPPING FOR $role SERVER hq; CREATE USER MAPPING FOR $role SERVER hq OPTIONS ($options); COMMIT; SELECT pg_sleep(0.05)" } 1 .. 6);
is(push_sales($till), 'ok', 'another session for the next batch');
$renewer->answer;
all_there('another session');

# The till waits for a standby that does not come, when the next batch is there: the
# master does not keep the locks of that
on_till("ALTER SERVER hq OPTIONS (SET statement_timeout '2s')");
my $arrived = on_master('SELECT count(*) FROM sale');
sell(40);
my $pusher = Possync::Session->new($till);
$pusher->start_sql("SELECT status FROM possync_push('sale')");
$master->poll_query_until('postgres', "SELECT count(*) > $arrived + 8 FROM sale") or die 'nothing arrives';
on_till("ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()");
$till->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'}) or die 'nobody waits';
cmp_ok(on_master(q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk' AND xact_start IS NOT NULL}), '>', 0, 'the next batch is there');
my $waited = time;
$master->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'clerk' AND xact_start IS NOT NULL)});
cmp_ok(time - $waited, '<', 20, 'its transaction ends');
on_till("SET synchronous_commit = off; ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()");
$pusher->answer;
on_master('DROP TRIGGER slow ON sale');
on_till('ALTER SERVER hq OPTIONS (DROP statement_timeout)');
is(push_sales($till), 'ok', 'pushed when the standby is not waited for');
all_there('a standby');

# No way through, with rows of the next batch there: the master does not keep its
# locks for ever
on_till("ALTER SERVER hq OPTIONS (ADD statement_timeout '2s')");
sell(40);
$proxy->hole_after(30000);
push_sales($till);
my $start = time;
$master->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'clerk' AND (state LIKE 'idle in transaction%' OR state = 'active'))}) or die 'locks are kept';
cmp_ok(time - $start, '<', 20, 'a session that hears nothing ends');
$proxy->pass;
$proxy->cut;
my $done = '';
for (1 .. 10) { $done = push_sales($till); last if $done eq 'ok'; }
is($done, 'ok', 'after the hole');
all_there('hole');
is(idle(), 0, 'no transaction is left open');

# How large batches are, each of which is one transaction at the master: small if that
# is near, so that both sides are at work; larger if answers take long
on_till('ALTER DATABASE postgres RESET possync.batch_entries');
on_master('DROP TRIGGER arrive ON sale');
my %batches;
for my $where ('near', 'far')
{
	$proxy->delay(0.15) if $where eq 'far';
	my $to = $sold + 3200;
	on_till("DO 'BEGIN FOR i IN @{[ $sold + 1 ]} .. $to LOOP PERFORM sell(''$where'' || i, NULL, 3); COMMIT; END LOOP; END'");
	$sold = $to;
	is(push_sales($till), 'ok', "$where: pushed");
	$batches{$where} = on_master("SELECT count(DISTINCT xmin::text) FROM sale WHERE number LIKE '$where%'");
}
$proxy->pass;
cmp_ok($batches{far}, '<', $batches{near}, 'batches are larger if the master is far');
all_there('batches');

done_testing();
