# While a batch is on its way the next one is prepared: whatever happens to either
# of them, every sale arrives once, whole, and in order.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $proxy = Possync::Proxy->new($master->port);
sales_master($master);
sales_till($till, $proxy->port, first_key => 100);

sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub held { return on_till('SELECT string_agg(concat_ws($$: $$, reason, sqlstate), $$, $$ ORDER BY id) FROM possync_quarantine'); }
sub open_batches { return on_till('SELECT count(*) FROM synchronize_batch'); }

# So many sales in transactions of their own, of nine entries each
my $sold = 0;
sub sell
{
	my ($n, $code) = @_;
	on_till(join ';', map { $sold++; "SELECT sell('s' || to_char($sold, 'FM000'), " . ($code // 'NULL') . ', 3)' } 1 .. $n);
	return;
}
sub all_there
{
	my ($test) = @_;
	is_same($till, $master, $sales, "$test: every sale");
	is(on_master($doubled) . on_master($broken), '', "$test: once and whole");
	is(open_batches() . '/' . on_till('SELECT count(*) FROM synchronize_queue'), '0/0', "$test: nothing is left");
	return;
}

on_till('ALTER DATABASE postgres SET possync.batch_entries = 20');

sell(40);
is(push_sales($till), 'ok', 'many batches');
all_there('many batches');
my $batches = on_till('SELECT count(DISTINCT run) FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model WHERE name = $$sale$$');
cmp_ok($batches, '>', 10, 'they were many');

# Keys of the remote come in time: a batch is one exchange
my $before = $proxy->stats;
sell(40);
push_sales($till);
my $after = $proxy->stats;
note(join ' ', map { "$_: " . ($after->{$_} - $before->{$_}) } sort keys %$after);
all_there('again');

# Customers that are made in one batch and referred to in the next
sell(20, "'A' || $sold % 3");
sell(20, "'A'");
is(push_sales($till), 'ok', 'customers of batches before');
all_there('customers');
is(on_master('SELECT count(*) = count(DISTINCT code) FROM customer'), 't', 'customers are there once');

# The master refuses one in the middle
on_master('ALTER TABLE sale ADD CONSTRAINT picky CHECK (number NOT IN ($$s140$$, $$s151$$))');
sell(40);
is(push_sales($till), 'ok', 'sales are refused');
is(held(), 'error: 23514, error: 23514', 'those alone wait');
on_till('UPDATE sale SET total = total WHERE number IN ($$s140$$, $$s141$$)');
on_master('ALTER TABLE sale DROP CONSTRAINT picky');
on_till('UPDATE synchronize_quarantine SET retry_at = now()');
is(push_sales($till), 'ok', 'they are taken after all');
all_there('refused');

# A row that cannot be prepared while another batch flies
on_till('SELECT possync_set_model($$customer$$, on_unknown => $$match$$)');
sell(5);
sell(1, "'unknown there'");
sell(10);
is(push_sales($till), 'ok', 'one that cannot be prepared');
is(held(), 'dependency: 09000', 'waits alone');
on_till('SELECT possync_set_model($$customer$$, on_unknown => $$match_create$$)');
on_till('UPDATE synchronize_quarantine SET retry_at = now()');
is(push_sales($till), 'ok', 'until it can be');
all_there('unprepared');

# Updates and deletes of rows of the batch before
sell(30);
on_till(q(UPDATE payment SET amount = amount + 1 WHERE kind = 'cash'; UPDATE sale SET total = total + 2;
	UPDATE sale_line SET price = price + 2.0 / quantity WHERE position = 1;
	UPDATE payment SET amount = amount + 1 WHERE kind = 'card'));
on_till("DELETE FROM sale WHERE number > 's17'");
sell(10);
is(push_sales($till), 'ok', 'updates and deletes');
is_same($till, $master, $sales, 'updates and deletes: every sale');

# The connection breaks after so many bytes, in either direction
for my $cut (qw(cut_after cut_after_sent))
{
	my %bytes;
	sell(20);
	my $start = $proxy->stats;
	push_sales($till);
	my $end = $proxy->stats;
	my $all = $cut eq 'cut_after' ? $end->{received} - $start->{received} : $end->{sent} - $start->{sent};
	my %results;
	for my $part (1 .. 8)
	{
		sell(20);
		my $open = open_batches();
		$proxy->$cut(int($all * $part / 8.5));
		my $result = push_sales($till);
		$results{ $result =~ /^(\w+)/ ? $1 : $result }++;
		$proxy->pass;
		cmp_ok(open_batches() - $open, '<=', 1, "$cut $part of 8: one more batch is open at most") if $result ne 'ok';
		sell(3);
	}
	note(join ' ', map { "$_: $results{$_}" } sort keys %results);
	is(push_sales($till), 'ok', "$cut: pushed at last");
	is_same($till, $master, $sales, "$cut: every sale");
	is(on_master($doubled) . open_batches(), '0', "$cut: once");
}

# Faults with a batch beside: the first of each point hits
for my $fault (map { my $kind = $_; map { "$kind: push $_" } qw(bound prepared written confirmed) } qw(error exit))
{
	sell(12);
	on_till("ALTER DATABASE postgres SET possync.fault = '$fault'");
	isnt(push_sales($till), 'ok', "$fault");
	on_till('ALTER DATABASE postgres RESET possync.fault');
	is(push_sales($till), 'ok', "$fault: pushed at last");
	is_same($till, $master, $sales, "$fault: every sale");
	is(on_master($doubled) . open_batches(), '0', "$fault: once");
}

# Somebody has locked what the next batch needs: the one on its way lands meanwhile,
# for it has locks at the master that others wait for
sell(20);
my $locker = Possync::Session->new($till);
$locker->run('BEGIN; INSERT INTO synchronize_translation (model, decision, run, remote_key, local_key)'
	. ' SELECT m.id, $$m$$, 0, 2000000000, s.id FROM synchronize_model m, sale s WHERE m.name = $$sale$$ ORDER BY s.id DESC OFFSET 9 LIMIT 1');
my $pushing = Possync::Session->new($till);
$pushing->start_sql("SELECT status FROM possync_push('sale')");
my $blocked = q(SELECT count(*) > 0 FROM pg_locks WHERE NOT granted);
ok($till->poll_query_until('postgres', $blocked), 'a batch that has to wait');
ok($till->poll_query_until('postgres', 'SELECT count(*) = 0 FROM synchronize_batch'), 'holds up none that is on its way');
cmp_ok(on_till('SELECT count(DISTINCT txid) FROM synchronize_queue'), '<', 20, 'which has landed');
$locker->run('ROLLBACK');
is(($pushing->answer)[0], 'ok', 'it goes on when it can');
is_same($till, $master, $sales, 'a lock: every sale');
is(on_master($doubled) . open_batches(), '0', 'a lock: once');

# A server whose connections are not kept
on_till("ALTER SERVER hq OPTIONS (ADD keep_connections 'off')");
sell(20);
is(push_sales($till), 'ok', 'connections that are not kept');
is_same($till, $master, $sales, 'connections that are not kept: every sale');

done_testing();
