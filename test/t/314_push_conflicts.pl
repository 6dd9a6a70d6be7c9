# Rows that both sides changed, where the push comes before the pull: the policy of
# the model holds all the same, and nothing of the master's is overwritten unseen.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use Possync::Session;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
sales_master($master);
sales_till($till, $master->port, first_key => 100);

sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub pull { return on_till("SELECT concat_ws(': ', status, error) FROM possync_pull('customer')"); }
sub held { return on_till('SELECT string_agg(concat_ws($$ $$, reason, direction, message), $$, $$ ORDER BY id) FROM possync_quarantine'); }
sub waiting { return on_till('SELECT count(*) FROM synchronize_queue'); }
sub names { return on_master('SELECT string_agg(name, $$ $$ ORDER BY code) FROM customer') . ' / ' . on_till('SELECT string_agg(name, $$ $$ ORDER BY code) FROM customer'); }

$_->safe_psql('postgres', 'ALTER TABLE customer ADD note jsonb, ADD changed_at timestamptz NOT NULL DEFAULT $$2020-01-01$$') for $master, $till;
on_master(<<'EOC');
INSERT INTO customer (code, name, note) SELECT 'c' || i, 'n' || i, '{"since": 1}' FROM generate_series(1, 3) i;
-- what tills send is stamped by the master
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed_at := clock_timestamp(); RETURN NEW; END $$;
EOC
on_till('SELECT * FROM possync_add_model($$customer$$, server => $$hq$$); SELECT possync_queue($$customer$$)');
is(pull(), 'ok', 'customers are pulled');
is(names(), 'n1 n2 n3 / n1 n2 n3', 'and the same on both sides');

my $round = 0;
for my $policy (qw(remote_wins newest ask))
{
	$round++;
	on_till("SELECT possync_set_model('customer', on_conflict => '$policy', change_columns => '{changed_at}')");

	# Only the till has changed it
	on_till("UPDATE customer SET name = 't$round', changed_at = now() WHERE code = 'c1'");
	is(push_sales($till), 'ok', "$policy: a row that only the till changed");
	on_till("UPDATE customer SET name = 'tt$round', changed_at = now() WHERE code = 'c1'");
	on_till("UPDATE customer SET name = 'ttt$round', note = '{\"round\": $round}', changed_at = now() WHERE code = 'c1'");
	is(push_sales($till), 'ok', "$policy: and again");
	like(names(), qr{^ttt$round .* / ttt$round}, "$policy: is pushed") or note(held());
	is(waiting() . held(), '0', "$policy: and nothing waits");

	# The answer was lost: what was sent is there
	on_till("UPDATE customer SET name = 'lost$round', changed_at = now() WHERE code = 'c1'");
	on_till("ALTER DATABASE postgres SET possync.fault = 'exit: push written'");
	push_sales($till);
	on_till('ALTER DATABASE postgres RESET possync.fault');
	is(push_sales($till), 'ok', "$policy: what arrived unknown to us");
	is(waiting() . held(), '0', "$policy: is no conflict");

	# Both have
	on_master("UPDATE customer SET name = 'm$round', changed_at = now() + '1 hour' WHERE code = 'c2'");
	on_till("UPDATE customer SET name = 'x$round', changed_at = now() WHERE code = 'c2'");
	on_till("SELECT sell('beside$round', 'c3', 1)");
	is(push_sales($till), 'ok', "$policy: a row that both changed");
	like(names(), qr{^\S+ m$round .* / \S+ x$round}, "$policy: is not overwritten");
	like(held(), qr{^conflict push row \d+ of "customer" was changed at the remote, too$}, "$policy: and waits");
	is(on_master("SELECT count(*) FROM sale WHERE number = 'beside$round'"), '1', "$policy: others do not");
	on_till("SELECT sell('behind$round', 'c2', 1)");
	is(push_sales($till), 'ok', "$policy: a sale that refers to it");
	is(on_master("SELECT count(*) FROM sale WHERE number = 'behind$round'"), '1', "$policy: does not wait, as the row is there");
	is(pull(), 'ok', "$policy: the pull decides");
	if ($policy eq 'ask')
	{
		like(held(), qr{^conflict push remote row \d+ was changed too, conflict pull }, "$policy: asks");
		on_till(q(SELECT possync_retry(id) FROM possync_quarantine WHERE direction = 'push'));
		is(push_sales($till), 'ok', "$policy: tried again");
		is(on_till('SELECT count(*) FROM possync_quarantine WHERE direction = $$push$$'), '1', "$policy: it waits as before, once");
		on_till(q(SELECT possync_resolve(id, 'local') FROM possync_quarantine WHERE direction = 'push'));
		is(push_sales($till), 'ok', "$policy: what was chosen");
		like(names(), qr{^\S+ x$round .* / \S+ x$round}, "$policy: is pushed") or note(held());
		pull();
	}
	else
	{
		like(names(), qr{^\S+ m$round .* / \S+ m$round}, "$policy: for the master");
	}
	is(waiting() . held(), '0', "$policy: nothing waits any more");

	# The till's is the newer one
	on_master("UPDATE customer SET name = 'old$round', changed_at = now() WHERE code = 'c3'");
	on_till("UPDATE customer SET name = 'new$round', changed_at = now() + '1 hour' WHERE code = 'c3'");
	push_sales($till);
	pull();
	push_sales($till);
	my $expected = { remote_wins => "old$round .* old$round", newest => "new$round .* new$round", ask => "old$round .* new$round" }->{$policy};
	like(names(), qr{$expected$}, "$policy: the newer change of the till");
	on_till(q(SELECT possync_resolve(id, 'remote') FROM possync_quarantine WHERE direction = 'push'));
	pull();
	is(waiting() . held(), '0', "$policy: nothing waits");
}

# Without a pull a person decides
on_master("UPDATE customer SET name = 'M' WHERE code IN ('c1', 'c2')");
on_till("UPDATE customer SET name = 'T1' WHERE code = 'c1'");
on_till("UPDATE customer SET name = 'T2' WHERE code = 'c2'");
is(push_sales($till), 'ok', 'two conflicts');
on_till(q(SELECT possync_resolve(q.id, CASE c.code WHEN 'c1' THEN 'local' ELSE 'remote' END)
	FROM possync_quarantine q JOIN customer c ON c.id::text = q.local_key));
is(push_sales($till), 'ok', 'decided without a pull');
like(names(), qr{^T1 M .* / T1 T2}, 'as they were');
is(waiting() . held(), '0', 'nothing waits');
is(pull(), 'ok', 'the pull');
like(names(), qr{^T1 M .* / T1 M}, 'brings what the master keeps');

# The pull is faster than the push, which waits at the master for the row: it holds the
# transaction that the push is going to hold
on_till("SELECT possync_set_model('customer', on_conflict => 'ask'); SELECT sell('ask', 'c1', 1)");
is(push_sales($till), 'ok', 'a sale before');
on_till("UPDATE customer SET name = 'T3' WHERE code = 'c1'; SELECT sell('ask too', NULL, 1)");
on_master("UPDATE customer SET name = 'M3' WHERE code = 'c1'");
my $office = Possync::Session->new($master);
$office->run("BEGIN; SELECT FROM customer WHERE code = 'c1' FOR UPDATE");
my $pushing = Possync::Session->new($till);
$pushing->start_sql("SELECT concat_ws(': ', status, error) FROM possync_push('sale')");
ok($master->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted'), 'a push waits for the row');
is(pull(), 'ok', 'a pull does not');
$office->run('COMMIT');
is(($pushing->answer)[0], 'ok', 'the transaction is held already');
is(on_till('SELECT count(*) FROM possync_quarantine WHERE direction = $$push$$') . on_master('SELECT count(*) FROM sale WHERE number = $$ask too$$'), '11', 'once, and others have gone');
on_till(q(SELECT possync_resolve(id, 'local') FROM possync_quarantine WHERE direction = 'push'));
is(push_sales($till), 'ok', 'what was chosen');
like(names(), qr{^T3 .* / T3}, 'is pushed');
pull();
is(waiting() . held(), '0', 'nothing waits');

# A row that is deleted here and was changed there
on_master("UPDATE customer SET name = 'kept' WHERE code = 'c2'");
on_till("BEGIN; UPDATE sale SET customer = NULL; DELETE FROM customer WHERE code = 'c2'; COMMIT");
is(push_sales($till), 'ok', 'a row that was changed there and is deleted here');
is(on_master("SELECT name FROM customer WHERE code = 'c2'") . ' ' . on_till('SELECT string_agg(reason, $$,$$) FROM possync_quarantine'), 'kept conflict', 'is not deleted there unseen');
on_till(q(SELECT possync_resolve(id, 'local') FROM possync_quarantine));
is(push_sales($till), 'ok', 'until somebody says so');
is(on_master("SELECT count(*) FROM customer WHERE code = 'c2'") . waiting(), '00', 'it is gone');

# Stamps that the master sets for what we send are no changes of its own
on_master('CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION stamp()');
for my $n (1 .. 3)
{
	on_till("UPDATE customer SET name = 'stamped$n' WHERE code = 'c3'");
	is(push_sales($till), 'ok', "stamped by the master: $n");
}
is(on_master("SELECT name FROM customer WHERE code = 'c3'") . held(), 'stamped3', 'stamps are no changes');

done_testing();
