# Rows of the master that no client wrote.

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
CREATE TABLE item $columns;
EOC
}
$master->safe_psql('postgres', "INSERT INTO $_ SELECT i, i, now() - interval '1 hour' FROM generate_series(1, 100) i") for 'item';
$master->safe_psql('postgres', 'GRANT pg_read_all_stats TO clerk');
connect_till($till, $master->port);
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('$_', server => 'hq'); SELECT possync_set_model('$_', change_columns => '{changed}')") for 'item';
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
