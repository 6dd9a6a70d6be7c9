# What a till sells is at the master as it was sold: rows that are new, changed
# and gone, what they refer to, keys of every kind; what is refused there waits
# alone, with what depends on it.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $master = Possync->cluster('master');
my @tills = map { Possync->cluster($_) } qw(till1 till2);
my ($till, $other) = @tills;
my @proxies = map { Possync::Proxy->new($master->port) } @tills;

sales_master($master);
sales_till($tills[$_], $proxies[$_]->port, first_key => 1 + 5000 * $_) for 0, 1;

sub sell { return $till->safe_psql('postgres', "SELECT sell('$_[0]', " . (defined $_[1] ? "'$_[1]'" : 'NULL') . ', ' . ($_[2] // 2) . ')'); }
sub on { my ($node, $sql) = @_; return $node->safe_psql('postgres', $sql); }
sub all_same
{
	my ($name) = @_;
	is_same($till, $master, $sales, "$name: sales");
	is(on($master, $_), '', "$name: whole and once") for $doubled, $broken;
	is(on($till, 'SELECT (SELECT count(*) FROM synchronize_queue), (SELECT count(*) FROM synchronize_batch), (SELECT count(*) FROM synchronize_held)'), '0|0|0', "$name: nothing waits");
	return;
}

# Sales, with customers that the master knows and does not know
on($master, "INSERT INTO customer (code, name) VALUES ('KNOWN', 'known to the master')");
sell('A-1');
sell('A-2', 'KNOWN');
sell('A-3', 'NEW');
is(push_sales($till), 'ok', 'pushed');
all_same('first');
is(on($master, 'SELECT code, name FROM customer ORDER BY code'), "KNOWN|known to the master\nNEW|known as NEW",
	'a customer who is needed is made once, one who is known left alone');

# Changed, deleted, and both within one transaction and across several
on($till, <<'EOC');
UPDATE payment SET kind = 'voucher' WHERE sale = (SELECT id FROM sale WHERE number = 'A-1') AND kind = 'cash';
DELETE FROM sale WHERE number = 'A-2';
SELECT sell('A-4', 'NEW', 3);
UPDATE sale SET number = 'A-4b' WHERE number = 'A-4';
SELECT sell('A-5', 'GONE', 3);
DELETE FROM sale WHERE number = 'A-5';
BEGIN;
SELECT sell('A-6', 'NEVER', 1);
DELETE FROM sale WHERE number = 'A-6';
DELETE FROM customer WHERE code = 'NEVER';
SELECT sell('A-7', NULL, 1);
UPDATE sale SET customer = (SELECT id FROM customer WHERE code = 'NEW') WHERE number = 'A-7';
UPDATE sale SET number = 'A-8' WHERE number = 'A-7';
COMMIT;
UPDATE sale SET customer = NULL WHERE number = 'A-3';
BEGIN;
SELECT sell('A-9', NULL, 4);
ROLLBACK;
EOC
is(push_sales($till), 'ok', 'pushed again');
all_same('changes');
is(on($master, "SELECT count(*) FROM customer WHERE code = 'NEVER'"), '0', 'a customer of no sale is not made');
my $run = on($till, "SELECT rows_read FROM possync_push('sale')");
is($run, '0', 'and there is nothing left');

# Two sales of one row's changes: the one that began first ended last, and
# what is refused makes the push try them one by one
on($master, "ALTER TABLE sale ADD CONSTRAINT polite CHECK (number NOT LIKE 'BAD%')");
sell('B-1');
{
	my @sessions = map { Possync::Session->new($till) } 1, 2;
	$sessions[0]->run("BEGIN; SELECT sell('B-2', NULL, 1)");
	$sessions[1]->run("BEGIN; SELECT sell('B-3', NULL, 1); UPDATE sale SET number = 'B-1 second' WHERE number = 'B-1'; COMMIT");
	$sessions[0]->run("UPDATE sale SET number = 'B-1 third' WHERE number = 'B-1 second'; COMMIT");
	$_->quit for @sessions;
}
my $bad = sell('BAD-1');
is(push_sales($till), 'ok', 'pushed with a bad one');
is(on($till, 'SELECT local_key, reason, sqlstate FROM synchronize_quarantine'), "$bad|error|23514", 'which is in quarantine');
is(on($master, "SELECT number FROM sale WHERE number LIKE 'B-%' ORDER BY 1"), "B-1 third\nB-2\nB-3", 'what was committed last is what stays');
on($till, "SELECT possync_discard(id, 'test') FROM synchronize_quarantine; DELETE FROM sale WHERE number = 'BAD-1'");
is(push_sales($till), 'ok', 'given up');
all_same('one by one');

# A customer who was to come with a sale that was given up comes with the next
sell('BAD-2', 'UNLUCKY');
is(push_sales($till), 'ok', 'pushed with a new customer');
is(on($till, 'SELECT count(DISTINCT txid) FROM synchronize_held'), '1', 'which is held');
on($till, "SELECT possync_discard(id, 'test') FROM synchronize_quarantine WHERE discarded_at IS NULL; ALTER TABLE sale DISABLE TRIGGER possync_queue; DELETE FROM sale WHERE number LIKE 'BAD%'; ALTER TABLE sale ENABLE ALWAYS TRIGGER possync_queue; DELETE FROM synchronize_queue");
is(push_sales($till), 'ok', 'nothing to push');
sell('B-4', 'UNLUCKY');
is(push_sales($till), 'ok', 'the next sale to that customer');
all_same('an unlucky customer');

# Three bad ones among many: they wait, and what depends on them
on($till, "DO \$\$ BEGIN FOR i IN 1 .. 300 LOOP PERFORM sell(CASE WHEN i IN (3, 150, 299) THEN 'BAD-' ELSE 'C-' END || i, 'C' || i % 20, 1 + i % 3); COMMIT; END LOOP; END \$\$");
on($till, "UPDATE sale SET sold_at = now() WHERE number = 'BAD-150'");
my $seconds = time;
is(push_sales($till), 'ok', 'pushed with three bad ones among many');
$seconds = time - $seconds;
cmp_ok($seconds, '<', 10, sprintf 'in %.1f seconds', $seconds);
is(on($till, 'SELECT reason, count(*) FROM synchronize_quarantine WHERE discarded_at IS NULL GROUP BY 1 ORDER BY 1'), "dependency|1\nerror|3", 'they are in quarantine, with what depends on them');
is(on($till, "SELECT DISTINCT row_image ->> 'number' FROM synchronize_quarantine WHERE discarded_at IS NULL ORDER BY 1"), "BAD-150\nBAD-299\nBAD-3", 'by name');
is(on($master, "SELECT count(*) FROM sale WHERE number LIKE 'C-%'"), '297', 'the rest has arrived');
is(on($till, "SELECT rows_read, rows_left_out FROM possync_push('sale')"), '0|0', 'they are not tried again by themselves');
on($till, "SELECT possync_retry(id) FROM synchronize_quarantine WHERE reason = 'error' AND discarded_at IS NULL");
is(push_sales($till), 'ok', 'tried again');
is(on($till, 'SELECT count(*) FROM synchronize_quarantine WHERE discarded_at IS NULL'), '4', 'and they are where they were');
on($master, 'ALTER TABLE sale DROP CONSTRAINT polite');
on($till, "SELECT possync_retry(id) FROM synchronize_quarantine WHERE reason = 'error' AND discarded_at IS NULL");
is(push_sales($till), 'ok', 'tried again once the cause is gone');
is(on($till, 'SELECT count(*) FROM synchronize_quarantine WHERE discarded_at IS NULL'), '0', 'nothing is left in quarantine');
all_same('after quarantine');

# Both tills get the same new customers at the same time
my @sessions = map { Possync::Session->new($_) } @tills;
my %went;
for my $round (1 .. 20)
{
	$sessions[$_]->run("SELECT sell('T$_-$round', 'SHARED' || $round, 1)") for 0, 1;
	$_->start_sql("SELECT concat_ws(': ', status, error) FROM possync_push('sale')") for @sessions;
	$went{ ($_->answer)[0] }++ for @sessions;
}
is(join(', ', map { "$_: $went{$_}" } sort keys %went), 'ok: 40', 'two tills push the same new customers at once');
is(on($master, "SELECT count(*), count(DISTINCT code) FROM customer WHERE code LIKE 'SHARED%'"), '20|20', 'each is there once');
is(on($master, "SELECT count(*), count(DISTINCT customer) FROM sale WHERE number ~ '^T[01]-'"), '40|20', 'with a sale of each till');
is(on($_, 'SELECT count(*) FROM synchronize_quarantine WHERE discarded_at IS NULL'), '0', 'none in quarantine') for @tills;

# Who calls it, and when
my $session = $sessions[0];
sub says
{
	my ($sql, $pattern, $name) = @_;
	my ($out, $err) = $session->run($sql);
	like("$out\n$err", $pattern, $name);
	return;
}
sell('D-1');
says("BEGIN READ ONLY; SELECT status FROM possync_push('sale'); COMMIT", qr/cannot execute possync_push\(\) in a read-only transaction/, 'not in a read-only transaction');
says("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT status FROM possync_push('sale'); COMMIT", qr/isolation level REPEATABLE READ/, 'not in one that would not see the result');
says("SELECT status FROM possync_push('sales')", qr/"sales"/, 'not for a model that there is not');
on($master, 'BEGIN; ALTER TABLE sale RENAME TO sold; COMMIT');
says("SELECT status, error FROM possync_push('sale')", qr/failed\|.*remote table public\.sale does not exist/s, 'the table is gone');
on($master, 'ALTER TABLE sold RENAME TO sale; REVOKE pg_write_all_data FROM clerk; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO clerk');
says("SELECT status, error FROM possync_push('sale')", qr/failed\|permission denied for table (sale|customer)/, 'without rights there');
is(on($till, 'SELECT count(*) FROM synchronize_quarantine WHERE discarded_at IS NULL'), '0', 'is nothing for quarantine');
on($master, 'GRANT SELECT, INSERT, UPDATE, DELETE ON sale, sale_line, payment TO clerk; GRANT SELECT, INSERT ON customer TO clerk');
says("SELECT status FROM possync_push('sale')", qr/^ok/, 'with the rights it needs');
$proxies[0]->down;
sell("D-2");
says("SELECT status, sqlstate FROM possync_push('sale')", qr/failed\|08/, 'the master is away');
says("SELECT status FROM possync_push('sale', on_error => 'raise')", qr/ERROR:  push of "sale" failed/, 'as an error, too');
cmp_ok(on($till, 'SELECT count(*) FROM synchronize_queue'), '>', 0, 'the queue is kept');
$proxies[0]->pass;
$proxies[0]->delay(0.5);
$session->start_sql("SELECT status FROM possync_push('sale')");
$till->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'possync push'");
on($till, 'SELECT pg_cancel_backend(' . $session->pid . ')');
my ($out, $err, $waited) = $session->answer;
like($err, qr/canceling statement due to user request/, 'a push is cancelled');
cmp_ok($waited, '<', 1.5, 'at once');
$proxies[0]->pass;
$till->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'possync push'");
is(push_sales($till), 'ok', 'and the next one goes on');
is(on($till, 'SELECT status, count(*) FROM synchronize_history WHERE status IN ($$running$$, $$interrupted$$) GROUP BY 1'), 'interrupted|1', 'history tells');
is(on($master, "SELECT count(*) FROM sale WHERE number LIKE 'D-%'"), '2', 'both are there');
$_->quit for @sessions;

# A till's role that is no superuser
on($till, "CREATE ROLE cashier LOGIN; GRANT USAGE ON FOREIGN SERVER hq TO cashier; CREATE USER MAPPING FOR cashier SERVER hq OPTIONS (user 'clerk', password 'secret')");
$session = Possync::Session->new($till, user => 'cashier');
sell('E-1', 'NEWCOMER');
says("SELECT status, error FROM possync_push('sale')", qr/failed\|permission denied for table customer/, 'who may not read what a sale refers to');
on($till, 'GRANT SELECT ON customer, product TO cashier');
says("SELECT status, error FROM possync_push('sale')", qr/^ok/, 'who may read it pushes');
says('SELECT * FROM synchronize_queue', qr/permission denied/, 'but does not see the queue');
says("SELECT possync_unqueue('sale')", qr/must be owner/, 'nor stops it');
$session->quit;
is(on($master, "SELECT count(*) FROM sale WHERE number = 'E-1'"), '1', 'it has arrived');

# Two at the master whom a customer may be: somebody chooses, and it is
# remembered
on($master, "INSERT INTO customer (code, name) VALUES ('TWIN A', 'known as TWIN'), ('TWIN B', 'known as TWIN'), ('DOUBLE', 'known as DOUBLE'), ('DOUBLE 2', 'known as DOUBLE')");
on($till, "SELECT possync_set_field('customer', 'name', match => true), possync_set_field('customer', 'code', match => false)");
sell('G-1', 'TWIN');
sell('G-2', 'TWIN');
is(push_sales($till), 'ok', 'pushed with a customer who may be two');
is(on($till, 'SELECT reason, cardinality(candidates) FROM synchronize_quarantine WHERE discarded_at IS NULL ORDER BY id'), "ambiguous|2\nambiguous|2", 'the sales wait')
  || diag(on($till, 'SELECT * FROM synchronize_quarantine WHERE discarded_at IS NULL'));
my $twin = on($master, "SELECT id FROM customer WHERE code = 'TWIN B'");
my ($status, $said, $why) = $till->psql('postgres', "SELECT possync_resolve(id, '1') FROM synchronize_quarantine WHERE discarded_at IS NULL AND reason = 'ambiguous'");
like($why, qr/"1" is not among the candidates/, 'only one of those');
on($till, "SELECT possync_resolve(id, '$twin') FROM synchronize_quarantine WHERE discarded_at IS NULL ORDER BY id LIMIT 1");
is(push_sales($till), 'ok', 'pushed when somebody has chosen');
is(on($master, "SELECT s.number, c.code FROM sale s JOIN customer c ON c.id = customer WHERE s.number LIKE 'G-%' ORDER BY 1"), "G-1|TWIN B\nG-2|TWIN B", 'both sales are of the one who was chosen');
# the same where a key was made already, because the row is new
on($till, "SELECT possync_queue('customer')");
on($master, 'GRANT UPDATE ON customer TO clerk');
sell('G-3', 'DOUBLE');
is(push_sales($till), 'ok', 'pushed with a new customer who may be two');
is(on($till, 'SELECT reason FROM synchronize_quarantine WHERE discarded_at IS NULL'), 'ambiguous', 'the sale waits');
my $double = on($master, "SELECT id FROM customer WHERE code = 'DOUBLE'");
on($till, "SELECT possync_resolve(id, '$double') FROM synchronize_quarantine WHERE discarded_at IS NULL");
is(push_sales($till), 'ok', 'pushed when somebody has chosen');
is(on($master, "SELECT c.id FROM sale s JOIN customer c ON c.id = customer WHERE s.number = 'G-3'"), $double, 'it is of the one who was chosen');
is(on($till, 'SELECT (SELECT count(*) FROM synchronize_queue), (SELECT count(*) FROM synchronize_batch), (SELECT count(*) FROM synchronize_held)'), '0|0|0', 'nothing waits');
on($till, "SELECT possync_unqueue('customer'), possync_set_field('customer', 'code', match => true), possync_set_field('customer', 'name', match => false)");

# A master that does things by itself, in tables it names without their schema
on($master, <<'EOC');
CREATE SCHEMA office;
ALTER DATABASE postgres SET search_path = office, public;
CREATE TABLE office.day_total (day date PRIMARY KEY, amount numeric NOT NULL);
GRANT USAGE ON SCHEMA office TO clerk;
GRANT ALL ON office.day_total TO clerk;
CREATE FUNCTION office.add_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO day_total VALUES (current_date, NEW.amount)
	ON CONFLICT (day) DO UPDATE SET amount = day_total.amount + NEW.amount;
	NEW.kind := upper(NEW.kind);
	RETURN NEW;
END $$;
CREATE TRIGGER add_up BEFORE INSERT ON payment FOR EACH ROW EXECUTE FUNCTION office.add_up();
EOC
sell('F-1');
is(push_sales($till), 'ok', 'pushed to a master with triggers');
is(on($master, "SELECT (SELECT sum(amount) FROM office.day_total) = total, (SELECT string_agg(kind, ' ' ORDER BY kind) FROM payment WHERE sale = s.id) FROM sale s WHERE number = 'F-1'"), 't|CARD CASH', 'which did their work');
on($master, 'CREATE FUNCTION office.never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; CREATE TRIGGER never BEFORE INSERT ON sale FOR EACH ROW WHEN (NEW.number = $$F-2$$) EXECUTE FUNCTION office.never()');
sell('F-2');
is(push_sales($till), 'ok', 'pushed to a master that swallows the sale');
is(on($till, 'SELECT count(*) > 0 FROM synchronize_quarantine WHERE discarded_at IS NULL'), 't', 'which does not go unnoticed');

done_testing();
