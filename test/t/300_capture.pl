# What a seller commits is queued, whatever way it was written and whoever he
# is; nothing else is.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', 'max_prepared_transactions = 5');

sales_master($master);
sales_till($till, $master->port);
my $admin = Possync::Session->new($till);

sub on { my ($sql) = @_; my ($out, $err) = $admin->run($sql); $err =~ s/^psql:<stdin>:\d+: //mg; return $out . ($out ne '' && $err ne '' ? "\n" : '') . $err; }
# What is queued, and then is no more
sub queued
{
	return on("SELECT string_agg(concat_ws(' ', name, operation, n), ', ' ORDER BY name, operation) FROM (SELECT m.name, operation, count(*) AS n FROM synchronize_queue q JOIN synchronize_model m ON m.id = q.model GROUP BY 1, 2) q; DELETE FROM synchronize_queue");
}
sub queues
{
	my ($sql, $expected, $name) = @_;
	my $said = on($sql);
	unlike($said, qr/ERROR/, "$name: done") if $expected ne '';
	is(queued(), $expected, $name);
	return;
}

# Ways to write
queues("INSERT INTO sale (number) VALUES ('1')", 'sale i 1', 'an insert');
queues('UPDATE sale SET total = 1', 'sale u 1', 'an update');
queues('UPDATE sale SET total = 1', 'sale u 1', 'an update to the same');
queues('DELETE FROM sale', 'sale d 1', 'a delete');
queues("INSERT INTO customer (code) VALUES ('c')", '', 'a customer is not queued');
queues("WITH s AS (INSERT INTO sale (number) SELECT 's' || i FROM generate_series(1, 1000) i RETURNING id) INSERT INTO payment (sale, kind, amount) SELECT id, 'cash', 1 FROM s", 'payment i 1000, sale i 1000', 'many at once');
queues("COPY (SELECT 'copied ' || i FROM generate_series(1, 100) i) TO '" . $till->data_dir . "/sales'; COPY sale (number) FROM '" . $till->data_dir . "/sales'", 'sale i 100', 'COPY');
queues("DELETE FROM sale WHERE number LIKE 's%'", 'payment d 1000, sale d 1000', 'rows deleted with another');
queues("INSERT INTO sale (id, number) OVERRIDING SYSTEM VALUE SELECT id, number FROM sale ON CONFLICT (id) DO UPDATE SET number = 'up ' || EXCLUDED.number", 'sale u 100', 'upserts');
queues("MERGE INTO sale s USING (SELECT min(id) AS id FROM sale UNION SELECT 100000) n ON n.id = s.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (id, number) OVERRIDING SYSTEM VALUE VALUES (n.id, 'merged')", 'sale d 1, sale i 1', 'MERGE');
queues("SET session_replication_role = replica; INSERT INTO sale (number) VALUES ('replica'); RESET session_replication_role", 'sale i 1', 'session_replication_role does not matter');
queues("BEGIN; INSERT INTO sale (number) VALUES ('a'); SAVEPOINT s; INSERT INTO sale (number) VALUES ('b'); ROLLBACK TO s; UPDATE sale SET total = 3 WHERE number = 'a'; COMMIT", 'sale i 1, sale u 1', 'what is rolled back is not');
queues("BEGIN; INSERT INTO sale (number) VALUES ('c'); ROLLBACK", '', 'nor a whole transaction');
is(on("BEGIN; INSERT INTO sale (number) VALUES ('d'); SAVEPOINT a; INSERT INTO sale (number) VALUES ('e'); SAVEPOINT b; INSERT INTO payment (sale, kind, amount) SELECT id, 'x', 1 FROM sale WHERE number = 'e'; COMMIT; SELECT count(DISTINCT txid), count(*) FROM synchronize_queue"), '1|3', 'savepoints are of one transaction');
queued();
on("BEGIN; INSERT INTO sale (number) VALUES ('prepared'); PREPARE TRANSACTION 'p'");
is(queued(), '', 'a prepared transaction is not there yet');
on("COMMIT PREPARED 'p'");
is(queued(), 'sale i 1', 'until it is committed');
queues('UPDATE sale SET id = id + 1000000 WHERE number = $$prepared$$', 'sale d 1, sale i 1', 'another key is another row');
like(on('TRUNCATE sale CASCADE'), qr/table public\.sale is queued for pushing and cannot be truncated/, 'TRUNCATE is refused');
like(on('TRUNCATE product, customer CASCADE'), qr/cannot be truncated/, 'by way of another table, too');
cmp_ok(on('SELECT count(*) FROM sale'), '>', 0, 'and nothing is gone');

# Changed tables
queues("ALTER TABLE sale RENAME TO sold; INSERT INTO sold (number) VALUES ('renamed'); ALTER TABLE sold RENAME TO sale", 'sale i 1', 'a renamed table');
queues("ALTER TABLE sale ADD note text, ADD long text GENERATED ALWAYS AS (number || '!') STORED; INSERT INTO sale (number, note) VALUES ('more columns', 'x')", 'sale i 1', 'a table with new columns');
on('ALTER TABLE sale DROP note, DROP long');
queues("CREATE SCHEMA other; ALTER TABLE sale SET SCHEMA other; INSERT INTO other.sale (number) VALUES ('moved'); ALTER TABLE other.sale SET SCHEMA public", 'sale i 1', 'a moved table');
queues("SELECT possync_unqueue('sale'); INSERT INTO sale (number) VALUES ('unqueued')", '', 'not queued any more');
queues("SELECT possync_queue('sale'); SELECT possync_queue('sale'); INSERT INTO sale (number) VALUES ('queued once')", 'sale i 1', 'queued again, but once');
queues("SELECT sell('stays', NULL, 1); SELECT possync_unqueue('sale')", 'payment i 2, sale i 1, sale u 1, sale_line i 1', 'what is queued stays');
on("SELECT possync_queue('sale')");
on("CREATE SERVER hq2 FOREIGN DATA WRAPPER possync_postgres; SELECT FROM possync_add_model('sale', server => 'hq2', name => 'sale2')");
like(on("SELECT possync_queue('sale2')"), qr/table (?:public\.)?sale is queued for model "sale" already/, 'a table queued for another server is not taken from it');
queues("INSERT INTO sale (number) VALUES ('of the first')", 'sale i 1', 'and stays queued for the first');
on("SELECT possync_remove_model('sale2'); DROP SERVER hq2 CASCADE");

# Who sells
on(<<'EOC');
CREATE ROLE seller LOGIN;
GRANT USAGE ON SCHEMA public TO seller;
GRANT INSERT, SELECT, UPDATE ON sale, sale_line, payment, customer, product TO seller;
EOC
my $seller = Possync::Session->new($till, user => 'seller');
my ($out, $err) = $seller->run("SELECT sell('by a seller', 'C1', 2)");
is($err, '', 'a seller sells');
is(queued(), 'payment i 2, sale i 1, sale u 1, sale_line i 2', 'and it is queued');
($out, $err) = $seller->run("SELECT nextval('synchronize_queue_txid_seq')");
like($err, qr/permission denied/, 'who may not touch the queue');
($out, $err) = $seller->run("CREATE TEMP TABLE mine (id integer, number text); CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION possync_capture('1'); INSERT INTO mine VALUES (7, 'forged')");
is(queued(), '', 'a trigger of his own forges nothing');
like($err, qr/"mine" is not that of the model/, 'and tells him so');
($out, $err) = $seller->run("SET search_path = pg_temp; CREATE FUNCTION pg_temp.escape(text) RETURNS text LANGUAGE sql AS 'SELECT 1'; INSERT INTO public.sale (number) VALUES ('odd path')");
is(queued(), 'sale i 1', 'whatever his search_path is');
$seller->quit;

# Nobody waits for anybody: not another seller, not the push
my @sellers = map { Possync::Session->new($till) } 1, 2;
$sellers[0]->run("BEGIN; SELECT sell('first', NULL, 1)");
my $seconds = ($sellers[1]->run("SET lock_timeout = '1s'; SELECT sell('second', NULL, 1)"))[2];
cmp_ok($seconds, '<', 1, 'a seller does not wait for another');
on('DELETE FROM synchronize_queue');
$sellers[0]->run('COMMIT');
$_->quit for @sellers;
queued();

# What a pull writes is not pushed back
$master->safe_psql('postgres', "INSERT INTO sale (number) VALUES ('pulled')");
like(on("SELECT status, rows_created FROM possync_pull('sale')"), qr/^ok\|1$/m, 'a sale is pulled');
is(queued(), '', 'and not queued');
$master->safe_psql('postgres', "UPDATE sale SET number = 'pulled twice'");
like(on("SELECT status, rows_updated FROM possync_pull('sale')"), qr/^ok\|1$/m, 'and changed');
is(queued(), '', 'and not queued');
queues("UPDATE sale SET number = 'and sold' WHERE number = 'pulled twice'", 'sale u 1', 'but what a seller does to it is');

# Partitions, old and new
on(<<'EOC');
CREATE TABLE part (id integer GENERATED BY DEFAULT AS IDENTITY, region text NOT NULL, amount numeric, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_n PARTITION OF part FOR VALUES IN ('n');
SELECT * FROM possync_add_model('part', server => 'hq');
SELECT possync_queue('part');
CREATE TABLE part_s (amount numeric, gone text, region text NOT NULL, id integer NOT NULL);
ALTER TABLE part_s DROP gone;
ALTER TABLE part ATTACH PARTITION part_s FOR VALUES IN ('s');
CREATE TABLE part_w PARTITION OF part FOR VALUES IN ('w');
EOC
queues("INSERT INTO part (region, amount) VALUES ('n', 1), ('s', 2), ('w', 3); INSERT INTO part_s VALUES (4, 's', 44)", 'part i 4', 'partitions');
queues("SET session_replication_role = replica; INSERT INTO part (region, amount) VALUES ('n', 1), ('s', 2), ('w', 3); INSERT INTO part_s VALUES (4, 's', 45); RESET session_replication_role", 'part i 4', 'also as a replica');
queues("UPDATE part SET amount = 9 WHERE region = 's'", 'part u 4', 'changed in a partition');
queues("UPDATE part SET region = 's' WHERE region = 'n' AND id = 1", 'part d 1, part i 1', 'moved to another');
on("SELECT possync_queue('part')");
like(on('TRUNCATE part_s'), qr/cannot be truncated/, 'a partition cannot be truncated');

# A model goes when nothing of it waits, or with what does
on("INSERT INTO part (region, amount) VALUES ('n', 5)");
like(on("SELECT possync_remove_model('part')"), qr/cannot remove model "part": changes of its rows wait to be pushed/, 'what waits is not lost with its model');
on("SELECT possync_remove_model('part', forget => true)");
is(on('SELECT count(*) FROM synchronize_queue q WHERE NOT EXISTS (SELECT FROM synchronize_model m WHERE m.id = q.model)'), '0', 'but when told to');

# A column that is renamed while rows wait does not become null on the way
my $configure = "SELECT FROM possync_add_model('sale', server => 'hq')";
on("SELECT sell('renamed column', NULL, 1); ALTER TABLE payment RENAME kind TO sort");
like(push_sales($till), qr/^failed: model "sale" and the tables of server "hq" do not fit together/, 'a renamed column is noticed');
on("$configure; SELECT possync_set_field('payment', 'sort', copy => true, remote => 'kind'); DELETE FROM synchronize_field WHERE name = 'kind'");
is(push_sales($till), 'ok', 'pushed under its new name');
like(on('SELECT message FROM synchronize_quarantine'), qr/^the row was queued with a column "kind", which table "payment" does not have any more$/, 'what was queued under the old one waits');
on('ALTER TABLE payment RENAME sort TO kind');
on("$configure; DELETE FROM synchronize_field WHERE name = 'sort'");
on('SELECT possync_retry(id) FROM synchronize_quarantine');
is(push_sales($till), 'ok', 'and is pushed when the column has its old name');
is($master->safe_psql('postgres', "SELECT count(*) FROM payment p JOIN sale s ON s.id = p.sale WHERE number = 'renamed column'"), '2', 'as it was');

# A dump of a till with something in the queue, restored where numbers of
# transactions begin anew: what is sold there while the old entries are pushed
# is not taken for theirs
on("SELECT sell('before the dump', 'C9', 2)");
my $other = Possync->cluster('other');
my $file = PostgreSQL::Test::Utils::tempdir() . '/dump';
$till->command_ok([ 'pg_dump', '-d', $till->connstr('postgres'), '-f', $file ], 'pg_dump');
$other->safe_psql('postgres', 'CREATE ROLE seller');
$other->command_ok([ 'psql', '-qX', '-v', 'ON_ERROR_STOP=1', '-d', $other->connstr('postgres'), '-f', $file ], 'restored');
$other->safe_psql('postgres', "CREATE USER MAPPING IF NOT EXISTS FOR CURRENT_USER SERVER hq OPTIONS (user 'clerk', password 'secret'); ALTER USER MAPPING FOR CURRENT_USER SERVER hq OPTIONS (SET password 'secret'); SELECT sell('after the dump', 'C9', 1)");
is(push_sales($other), 'ok', 'the restored queue is pushed');
is($master->safe_psql('postgres', "SELECT string_agg(number, ', ' ORDER BY number) FROM sale WHERE number LIKE '% the dump'"), 'after the dump, before the dump', 'with what is sold now');
is($master->safe_psql('postgres', $broken . ' LIMIT 0') . $other->safe_psql('postgres', 'SELECT count(*) FROM synchronize_queue'), '0', 'nothing waits');

done_testing();
