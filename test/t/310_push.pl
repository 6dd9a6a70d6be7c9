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
is(on($till, 'SELECT count(*) FROM synchronize_held'), '1', 'which is held');
on($till, "SELECT possync_discard(id, 'test') FROM synchronize_quarantine WHERE discarded_at IS NULL; ALTER TABLE sale DISABLE TRIGGER possync_queue; DELETE FROM sale WHERE number LIKE 'BAD%'; ALTER TABLE sale ENABLE ALWAYS TRIGGER possync_queue; DELETE FROM synchronize_queue");
is(push_sales($till), 'ok', 'nothing to push');
sell('B-4', 'UNLUCKY');
is(push_sales($till), 'ok', 'the next sale to that customer');
all_same('an unlucky customer');
done_testing();
