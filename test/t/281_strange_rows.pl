# Rows of the master that nobody wrote where they are: a partition that was attached,
# a table in the place of another one. A change column that has another type now. And
# writers that are no clients.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master', "wal_level = logical\nmax_wal_senders = 3\nmax_replication_slots = 3\n");
my $till = Possync->cluster('till');
my $columns = '(id integer PRIMARY KEY, n integer, changed timestamptz NOT NULL DEFAULT now())';

for my $node ($master, $till)
{
	$node->safe_psql('postgres', <<"EOC");
CREATE TABLE whole $columns PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF whole FOR VALUES FROM (1) TO (1000);
CREATE TABLE plain $columns;
CREATE TABLE typed $columns;
CREATE TABLE item $columns;
EOC
}
$till->safe_psql('postgres', "CREATE TABLE part_2 PARTITION OF whole FOR VALUES FROM (1000) TO (2000)");
$master->safe_psql('postgres', "INSERT INTO $_ SELECT i, i, now() - interval '1 hour' FROM generate_series(1, 100) i") for qw(whole plain typed item);
$master->safe_psql('postgres', 'GRANT pg_read_all_stats TO clerk');
connect_till($till, $master->port);
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('$_', server => 'hq'); SELECT possync_set_model('$_', change_columns => '{changed}')") for qw(whole plain typed item);
$till->safe_psql('postgres', "ALTER TABLE typed ALTER changed DROP DEFAULT, ALTER changed TYPE text");
my $session = Possync::Session->new($till);

sub pull
{
	my ($table) = @_;
	return ($session->run("SELECT concat_ws('|', status, rows_read, rows_created) FROM possync_pull('$table')"))[0];
}

sub same
{
	my ($table, $name) = @_;
	return is_same($master, $till, "SELECT id, n FROM $table ORDER BY 1", $name);
}

# What is attached is older than all that has been read.
$master->safe_psql('postgres', <<"EOC");
CREATE TABLE part_2 $columns;
CREATE TABLE plain_2 (LIKE plain INCLUDING ALL);
INSERT INTO part_2 SELECT i, i, now() - interval '1 day' FROM generate_series(1000, 1020) i;
INSERT INTO plain_2 SELECT i, -i, now() - interval '1 day' FROM generate_series(50, 120) i WHERE i % 10 > 0;
INSERT INTO whole VALUES (101, 101);
EOC
for my $table (qw(whole plain))
{
	like(pull($table), qr/^ok\|10[01]\|10[01]$/, "$table: all there is");
	pull($table) for 1 .. 2;
}
$master->safe_psql('postgres', 'ALTER TABLE whole ATTACH PARTITION part_2 FOR VALUES FROM (1000) TO (2000); UPDATE whole SET n = 0, changed = now() WHERE id = 1');
is(pull('whole'), 'ok|22|21', 'a partition is attached: its rows are read, and no others');
same('whole', 'nothing is missing');
is(pull('whole'), 'ok|0|0', 'once');
$master->safe_psql('postgres', 'CREATE TABLE part_3 PARTITION OF whole FOR VALUES FROM (2000) TO (3000); UPDATE whole SET n = 1, changed = now() WHERE id = 1');
is(pull('whole'), 'ok|1|0', 'an empty one costs nothing');
$master->safe_psql('postgres', 'ALTER TABLE whole DETACH PARTITION part_2; UPDATE part_2 SET n = 7 WHERE id = 1001; UPDATE whole SET n = 2, changed = now() WHERE id = 1');
is(pull('whole'), 'ok|1|0', 'nor does one that is detached');
$master->safe_psql('postgres', 'ALTER TABLE whole ATTACH PARTITION part_2 FOR VALUES FROM (1000) TO (2000); UPDATE whole SET n = 3, changed = now() WHERE id = 1');
is(pull('whole'), 'ok|22|0', 'attached again');
same('whole', 'what was changed meanwhile is there');

# Where stamps tell nothing, a sweep notices.
$master->safe_psql('postgres', 'BEGIN; ALTER TABLE plain RENAME TO plain_1; ALTER TABLE plain_2 RENAME TO plain; DELETE FROM plain_1; COMMIT');
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (ADD sweep '1ms')");
like(pull('plain'), qr/^ok\|63\|18$/, 'another table has taken the place of one: all of it is read');
is($till->safe_psql('postgres', 'SELECT count(*) FILTER (WHERE n < 0), count(*) FILTER (WHERE id > 100) FROM plain'), '63|18', 'nothing is missing');
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET sweep '1h')");

# A position of another type
like(pull('typed'), qr/^ok\|100\|100$/, 'all there is');
for my $change ('TYPE bigint USING extract(epoch FROM changed)::bigint', 'TYPE text', "TYPE timestamptz USING now() - changed::bigint * interval '1 s'")
{
	pull('typed');
	$master->safe_psql('postgres', "ALTER TABLE typed ALTER changed DROP DEFAULT, ALTER changed $change; INSERT INTO typed SELECT max(id) + 1, 0, min(changed) FROM typed");
	like(pull('typed'), qr/^ok\|/, "$change: pulled");
	same('typed', 'nothing is missing');
}

# A subscription applies what was written elsewhere, in a transaction that takes time.
$master->safe_psql('postgres', 'CREATE DATABASE elsewhere');
$master->safe_psql('elsewhere', 'CREATE TABLE item (id integer PRIMARY KEY, n integer); CREATE PUBLICATION p FOR TABLE item');
$master->safe_psql('elsewhere', "SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
$master->safe_psql('postgres', <<"EOC");
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	IF NEW.n = 0 THEN
		PERFORM pg_advisory_lock(1);
	END IF;
	RETURN NEW;
END \$\$;
CREATE TRIGGER take_time AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION take_time();
ALTER TABLE item ENABLE ALWAYS TRIGGER take_time;
EOC
my $subscription = $master->connstr('elsewhere') =~ s/'/''/gr;
$master->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '$subscription' PUBLICATION p WITH (create_slot = false, slot_name = 's', copy_data = false)");
my $holder = Possync::Session->new($master);
$holder->run('SELECT pg_advisory_lock(1)');
pull('item');
$master->safe_psql('elsewhere', 'INSERT INTO item VALUES (1001, 1), (1002, 0)');
$master->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") or die 'nothing is applied';
sleep 1;
$master->safe_psql('postgres', 'INSERT INTO item VALUES (2000, 1)');
is(pull('item'), 'ok|1|1', 'a transaction is being applied');
$holder->quit;
$master->poll_query_until('postgres', 'SELECT count(*) = 103 FROM item') or die 'it was not applied';
$master->safe_psql('postgres', 'INSERT INTO item VALUES (2001, 1)');
is(pull('item'), 'ok|4|3', 'what it wrote is read when it has ended');
same('item', 'nothing is missing');
$master->safe_psql('postgres', 'DROP SUBSCRIPTION s');

$session->quit;
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|XX000/, 'nothing leaked');

done_testing();
