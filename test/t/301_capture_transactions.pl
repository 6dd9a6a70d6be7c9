# Captured rows wait until their transaction commits.  Whatever becomes of it
# and of its savepoints, all that is committed is queued, once and in order, and
# nothing else is.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', 'max_prepared_transactions = 5');

sales_master($master);
sales_till($till, $master->port);
my $admin = Possync::Session->new($till);
my $seller = Possync::Session->new($till);

sub on { my ($sql, $session) = @_; my ($out, $err) = ($session // $admin)->run($sql); $err =~ s/^psql:<stdin>:\d+: //mg; return $out . ($out ne '' && $err ne '' ? "\n" : '') . $err; }

# The sales that are queued, in order, transactions between bars; then none is.
sub queued
{
	return on(q{SELECT string_agg(t, ' | ' ORDER BY txid) FROM (SELECT txid, string_agg(concat(operation, image ->> 'number'), ' ' ORDER BY id) AS t FROM synchronize_queue GROUP BY txid) q; DELETE FROM synchronize_queue});
}
sub sell { my ($number) = @_; return "INSERT INTO sale (number) VALUES ('$number');" }
sub queues
{
	my ($sql, $expected, $name) = @_;
	is(on($sql, $seller), '', "$name: done");
	is(queued(), $expected, $name);
	return;
}

# Savepoints
queues('BEGIN;' . sell(1) . 'SAVEPOINT a;' . sell(2) . 'SAVEPOINT b;' . sell(3) . 'RELEASE b;' . sell(4) . 'ROLLBACK TO a;' . sell(5) . 'COMMIT', 'i1 i5', 'a savepoint takes those within with it');
queues('BEGIN; SAVEPOINT a;' . sell(1) . 'SAVEPOINT b;' . sell(2) . 'ROLLBACK TO b;' . sell(3) . 'RELEASE b;' . sell(4) . 'RELEASE a; SAVEPOINT a;' . sell(5) . 'ROLLBACK TO a; COMMIT', 'i1 i3 i4', 'released ones stay');
queues('BEGIN; SAVEPOINT a; SAVEPOINT b; SAVEPOINT c;' . sell(1) . 'RELEASE b;' . sell(2) . 'ROLLBACK TO a; SAVEPOINT b;' . sell(3) . 'RELEASE b; COMMIT', 'i3', 'the first row is deep within');
queues('BEGIN; SAVEPOINT a; SAVEPOINT b;' . sell(1) . 'RELEASE b; SAVEPOINT b;' . sell(2) . 'ROLLBACK TO b; ROLLBACK TO b;' . sell(3) . 'SAVEPOINT c; RELEASE a;' . sell(4) . 'COMMIT', 'i1 i3 i4', 'released into one that had captured nothing');
queues('BEGIN; SAVEPOINT a;' . sell(1) . 'ROLLBACK TO a; COMMIT', '', 'only rolled back ones');
queues(<<'EOC', join(' ', map { "i$_" } grep { $_ % 3 } 1 .. 50), 'exception blocks');
DO $$
BEGIN
	FOR i IN 1 .. 50 LOOP
		BEGIN
			INSERT INTO sale (number) VALUES (i);
			IF i % 3 = 0 THEN RAISE division_by_zero; END IF;
		EXCEPTION WHEN division_by_zero THEN
		END;
	END LOOP;
END $$;
EOC

# Transactions within procedures
on(<<'EOC');
CREATE PROCEDURE sell_many() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 6 LOOP
		INSERT INTO sale (number) VALUES (i);
		IF i % 2 = 0 THEN COMMIT; ELSIF i = 3 THEN ROLLBACK; END IF;
	END LOOP;
	INSERT INTO sale (number) VALUES ('last');
END $$;
EOC
queues('CALL sell_many()', 'i1 i2 | i4 | i5 i6 | ilast', 'COMMIT and ROLLBACK in a procedure');
queues('BEGIN;' . sell(1) . 'COMMIT AND CHAIN;' . sell(2) . 'ROLLBACK AND CHAIN;' . sell(3) . 'COMMIT', 'i1 | i3', 'chained transactions');

# Prepared transactions
queues('BEGIN;' . sell(1) . 'SAVEPOINT a;' . sell(2) . "ROLLBACK TO a; PREPARE TRANSACTION 'p'; BEGIN;" . sell(3) . "PREPARE TRANSACTION 'q';" . sell(4) . "ROLLBACK PREPARED 'q'; COMMIT PREPARED 'p'", 'i1 | i4', 'prepared transactions');

# What happens at the end of a transaction
on(<<'EOC');
CREATE FUNCTION pay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO sale (number) VALUES (NEW.number || ' paid');
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER pay AFTER INSERT ON sale DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.number NOT LIKE '%paid') EXECUTE FUNCTION pay();
EOC
queues('BEGIN;' . sell(1) . sell(2) . 'COMMIT', 'i1 i2 i1 paid i2 paid', 'a deferred trigger sells');
queues('BEGIN;' . sell(1) . "PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'", 'i1 i1 paid', 'before PREPARE TRANSACTION, too');
on('DROP TRIGGER pay ON sale');
queues('BEGIN;' . sell(1) . 'SET TRANSACTION READ ONLY; COMMIT', 'i1', 'a transaction that has become read-only');
queues('BEGIN ISOLATION LEVEL SERIALIZABLE;' . sell(1) . 'COMMIT', 'i1', 'a serializable one');
queues('BEGIN;' . sell(1) . 'UPDATE sale SET number = 2 WHERE id = lastval(); DELETE FROM sale WHERE id = lastval(); COMMIT', 'i1 u2 d2', 'changes of one row');

# Who is referred to comes first, also if the reference was written before
on('ALTER TABLE payment ALTER CONSTRAINT payment_sale_fkey DEFERRABLE INITIALLY DEFERRED');
on("BEGIN; INSERT INTO payment (sale, kind, amount) VALUES (1000000, 'early', 1)", $seller);
on('INSERT INTO sale (id, number) VALUES (1000000, 1)');
is(on('COMMIT', $seller), '', 'a payment committed after its sale, and written before');
is(queued(), 'i1 | i', 'comes after it');
on('ALTER TABLE payment ALTER CONSTRAINT payment_sale_fkey NOT DEFERRABLE');
on("BEGIN; INSERT INTO sale (number) VALUES ('long')", $seller);
on(sell('short'));
on('COMMIT', $seller);
is(queued(), 'ishort | ilong', 'the order is that of the commits');

# Errors while the rows are written end the transaction, and nothing stays
on("ALTER TABLE synchronize_queue ADD CONSTRAINT broken CHECK (image ->> 'number' <> 'bad')");
like(on('BEGIN;' . sell('good') . sell('bad') . 'COMMIT', $seller), qr/violates check constraint "broken"/, 'an error at the commit');
like(on('BEGIN;' . sell('bad') . "PREPARE TRANSACTION 'p'", $seller), qr/violates check constraint "broken"/, 'and at PREPARE TRANSACTION');
is(on("SELECT count(*) FROM sale WHERE number IN ('good', 'bad')"), '0', 'aborts it');
queues(sell('after'), 'iafter', 'the session sells on, and nothing is left behind');
on('ALTER TABLE synchronize_queue DROP CONSTRAINT broken');
on('BEGIN; LOCK TABLE synchronize_queue IN EXCLUSIVE MODE');
$seller->start_sql('BEGIN;' . sell('cancelled') . 'COMMIT');
$seller->wait_until("wait_event_type = 'Lock'");
on('SELECT pg_cancel_backend(' . $seller->pid . ')');
like(($seller->answer)[1], qr/canceling statement due to user request/, 'a commit is cancelled');
on('ROLLBACK');
is(on("SELECT count(*) FROM sale WHERE number = 'cancelled'"), '0', 'and the sale is gone');
queues(sell('after'), 'iafter', 'nothing of it is left behind');

# More than memory is used for, with savepoints on both sides of that
sub bulk { my ($name, $n) = @_; return "INSERT INTO sale (number) SELECT '$name' || i || repeat('x', 200) FROM generate_series(1, $n) i;" }
sub in_queue
{
	my ($numbers, $name) = @_;
	is(on(<<"EOC"), 't|t', $name);
WITH q AS (SELECT image ->> 'number' AS number, row_number() OVER (ORDER BY txid, id) AS n FROM synchronize_queue),
s AS (SELECT number, row_number() OVER (ORDER BY id) AS n FROM sale WHERE number LIKE '$numbers')
SELECT count(*) > 1000, bool_and(q.number IS NOT DISTINCT FROM s.number) FROM q FULL JOIN s USING (n);
EOC
	on('DELETE FROM synchronize_queue; ALTER TABLE sale DISABLE TRIGGER possync_queue; DELETE FROM sale; ALTER TABLE sale ENABLE ALWAYS TRIGGER possync_queue');
	return;
}
on('DELETE FROM sale; DELETE FROM synchronize_queue');
is(on('BEGIN;' . sell('k first') . 'SAVEPOINT a;' . bulk('l', 5000) . 'ROLLBACK TO a;' . bulk('k', 100) . 'SAVEPOINT b;' . bulk('k', 5000) . 'SAVEPOINT c;' . bulk('l', 3000) . 'ROLLBACK TO c;' . bulk('k', 10) . 'RELEASE b; SAVEPOINT d;' . bulk('l', 100) . 'ROLLBACK TO d;' . sell('k last') . 'COMMIT', $seller), '', 'many rows, some of them rolled back');
in_queue('k%', 'the others are queued, in order');
is(on('BEGIN; SAVEPOINT a;' . bulk('l', 5000) . 'ROLLBACK TO a;' . bulk('k', 2000) . "PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'", $seller), '', 'and prepared');
in_queue('k%', 'they are queued, too');
is(on('BEGIN;' . bulk('l', 5000) . 'ROLLBACK;' . sell('k') . sell('k 2'), $seller), '', 'all of them rolled back');
is(queued(), 'ik | ik 2', 'leave nothing');

# Rows as large as what is kept in memory
on("ALTER TABLE sale ALTER number SET STORAGE EXTERNAL; DELETE FROM sale; DELETE FROM synchronize_queue");
on('BEGIN;' . join('', map { "INSERT INTO sale (number) VALUES ($_ || repeat('y', $_));" } 1, 100_000, 250_000, 262_000, 1_000_000, 2, 300_000, 10) . "UPDATE sale SET number = number || 'z'; COMMIT", $seller);
is(on("SELECT count(*), count(*) FILTER (WHERE operation = 'i' AND before IS NULL OR before ->> 'number' || 'z' = image ->> 'number') FROM synchronize_queue"), '16|16', 'large rows are whole');
is(on("SELECT count(*) FROM synchronize_queue q JOIN sale s ON s.id = q.local_key AND s.number = q.image ->> 'number' WHERE operation = 'u'"), '8', 'and as they were written');
on('DELETE FROM sale; DELETE FROM synchronize_queue');

# Memory is bounded, and temporary files go
my $memory = 'SELECT sum(total_bytes) FROM pg_backend_memory_contexts';
on(bulk('warm', 10), $seller);
my $before = on($memory, $seller);
my $during = on("SET log_temp_files = 0; BEGIN;" . bulk('m', 100_000) . $memory, $seller);
cmp_ok($during - $before, '<', 2_000_000, 'memory after 100,000 rows in a transaction');
is(on('SELECT count(*) > 0 FROM pg_ls_tmpdir()'), 't', 'they are in a file');
on('COMMIT', $seller);
cmp_ok(on($memory, $seller) - $before, '<', 1_000_000, 'and after its end');
is(on('SELECT count(*) FROM pg_ls_tmpdir()'), '0', 'the file is gone');
is(on('SELECT count(*), count(DISTINCT txid), max(id) FROM synchronize_queue WHERE image ->> $$number$$ LIKE $$m%$$'), '100000|1|100000', 'all are queued');
on('BEGIN;' . bulk('m', 10_000) . 'ROLLBACK', $seller);
is(on('SELECT count(*) FROM pg_ls_tmpdir()'), '0', 'nor is there one after a rollback');
my $doing = "BEGIN; DO 'BEGIN FOR i IN 1 .. 20000 LOOP BEGIN INSERT INTO sale (number) VALUES (i); IF i % 2 = 0 THEN RAISE division_by_zero; END IF; EXCEPTION WHEN division_by_zero THEN END; END LOOP; END';";
$during = on($doing . $memory, $seller);
cmp_ok($during - $before, '<', 4_000_000, 'memory after 20,000 savepoints');
on('ROLLBACK; DELETE FROM sale; DELETE FROM synchronize_queue', $seller);
on('VACUUM sale, synchronize_queue');

# What reads the queue in the same transaction
$master->safe_psql('postgres', "INSERT INTO sale (number) VALUES ('a'), ('b')");
like(on("SELECT status FROM possync_pull('sale')"), qr/^ok$/, 'two sales are pulled');
is(on('SELECT count(*) FROM synchronize_queue'), '0', 'and not queued');
$master->safe_psql('postgres', "UPDATE sale SET total = 1");
my $change = "UPDATE sale SET total = 2 WHERE number = 'a';";
like(on("BEGIN; $change SELECT status FROM possync_pull('sale');" . sell('c') . 'COMMIT', $seller), qr/^ok$/, 'a pull in a transaction that has changed a row');
is(on("SELECT string_agg(number || total, ' ' ORDER BY number) FROM sale WHERE total > 0"), 'a2.00 b1.00', 'sees that it has');
is(queued(), 'ua ic', 'the transaction is queued whole');
$master->safe_psql('postgres', "UPDATE sale SET total = 3");
is(on("BEGIN; UPDATE sale SET total = 4 WHERE number = 'a'; SAVEPOINT s; DO \$\$ BEGIN PERFORM possync_pull('sale'); END \$\$; ROLLBACK TO s;" . sell('d') . 'COMMIT', $seller), '', 'a pull that is rolled back');
is(queued(), 'ua id', 'leaves what was captured before');
on("BEGIN; UPDATE sale SET total = 5 WHERE number = 'a'; SELECT FROM possync_pull('sale')", $seller);
on(sell('between'));
on(sell('e') . 'COMMIT', $seller);
is(queued(), 'ibetween | ua ie', 'what is captured after a pull decides about the order');
on("BEGIN; UPDATE sale SET total = 5 WHERE number = 'a'; SELECT FROM possync_pull('sale')", $seller);
on(sell('between'));
on('COMMIT', $seller);
is(queued(), 'ibetween | ua', 'even if there is nothing');
on("CREATE PROCEDURE pull_and_sell() LANGUAGE plpgsql AS \$\$ BEGIN FOR i IN 1 .. 2 LOOP UPDATE sale SET total = 6 WHERE number = 'a'; PERFORM possync_pull('sale'); INSERT INTO sale (number) VALUES (i); COMMIT; END LOOP; END \$\$");
queues('CALL pull_and_sell()', 'ua i1 | ua i2', 'the same in a procedure');
on("SELECT possync_set_model('sale', on_conflict => 'remote_wins')");
$master->safe_psql('postgres', "UPDATE sale SET total = 7");
like(on("BEGIN; UPDATE sale SET total = 8 WHERE number = 'a'; SELECT status FROM possync_pull('sale');" . sell('f') . 'COMMIT', $seller), qr/^ok$/, 'the remote row wins');
is(queued(), 'if', 'what was captured for it is dropped');
on("SELECT possync_set_model('sale', on_conflict => 'ask')");
$master->safe_psql('postgres', "UPDATE sale SET total = 9");
like(on("BEGIN; UPDATE sale SET total = 10 WHERE number = 'a'; SELECT status FROM possync_pull('sale');" . sell('g') . 'COMMIT', $seller), qr/^ok$/m, 'somebody is asked');
is(on("SELECT count(*), count(h.txid) FROM synchronize_queue LEFT JOIN synchronize_held h USING (txid, id)"), '2|2', 'and the whole transaction waits');
on("UPDATE sale SET total = 12 WHERE number = 'g'");
is(push_sales($till) . $master->safe_psql('postgres', "SELECT count(*) FROM sale WHERE number = 'g'"), 'ok0', 'and so does what changes a row that it wrote after the pull');
is(on("SELECT possync_resolve(id, 'local') FROM synchronize_quarantine WHERE direction = 'push' AND reason = 'conflict'"), '', 'for the answer');
is(push_sales($till), 'ok', 'which lets it go');
is($master->safe_psql('postgres', "SELECT string_agg(number || coalesce(total::text, ''), ' ' ORDER BY number) FROM sale"), 'a10.00 b9.00 g12.00', 'whole');
like(on("BEGIN; UPDATE sale SET total = 11 WHERE number = 'b'; SELECT explanation FROM possync_explain('sale', (SELECT id::text FROM sale WHERE number = 'b')); ROLLBACK", $seller), qr/updated here, waits for the next push/, 'a transaction can ask about its own changes');
is(queued(), '', 'and roll them back');

# Several sellers at a time: every transaction stays whole and is in order
my @sellers = map { Possync::Session->new($till) } 1 .. 4;
for my $i (0 .. 3)
{
	$sellers[$i]->start_sql("DO 'BEGIN FOR i IN 1 .. 50 LOOP PERFORM sell(\$a\$s$i-\$a\$ || i, \$a\$C\$a\$ || i % 5, 1 + i % 3); COMMIT; END LOOP; END'");
}
is(($_->answer)[1], '', 'a seller sells') for @sellers;
is(on('SELECT count(DISTINCT txid), count(*) FILTER (WHERE n <> max) FROM (SELECT txid, count(*) OVER (PARTITION BY txid) AS n, max(id) OVER (PARTITION BY txid) AS max FROM synchronize_queue) q'), '200|0', 'transactions are whole');
on("SELECT possync_set_model('sale', on_conflict => 'local_wins')");
is(push_sales($till), 'ok', 'and pushed');
is($master->safe_psql('postgres', "SELECT count(*) FROM sale WHERE number LIKE 's%'"), '200', 'every one');
is($master->safe_psql('postgres', "$doubled"), '', 'once');
$_->quit for @sellers;

# Without the extension there is no queue
is(on('BEGIN;' . sell('no queue') . 'SET client_min_messages = warning; DROP EXTENSION possync CASCADE; COMMIT', $seller), '', 'the extension is dropped by who sells');
is(on("SELECT count(*) FROM sale WHERE number = 'no queue'"), '1', 'who has sold');

done_testing();
