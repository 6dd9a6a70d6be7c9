# While a pull is on its way somebody writes a table of the master anew, or puts another
# one in its place. The pull's snapshot sees no row of that, and must not believe it.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');

for my $node ($master, $till)
{
	# at the master nothing but the pull is to wait for the parent
	my $references = $node == $till ? 'REFERENCES parent' : '';
	$node->safe_psql('postgres', <<"EOC");
CREATE TABLE parent (id integer PRIMARY KEY, n integer, changed timestamptz NOT NULL DEFAULT now());
CREATE TABLE child (id integer PRIMARY KEY, parent integer $references, n integer, changed timestamptz NOT NULL DEFAULT now());
EOC
}
$master->safe_psql('postgres', "INSERT INTO parent SELECT i, i, now() - interval '1 day' FROM generate_series(1, 50) i; INSERT INTO child SELECT i, i, i, now() - interval '1 day' FROM generate_series(1, 50) i");
connect_till($till, $master->port);
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (ADD sweep '0'); SELECT * FROM possync_add_model('child', server => 'hq')");
$till->safe_psql('postgres', "SELECT possync_set_model('$_', on_delete => 'delete', change_columns => '{changed}')") for qw(parent child);
my $session = Possync::Session->new($till);
$session->run('SET possync.compare_interval = 0');

my $pull = "SELECT concat_ws('|', status, rows_created, rows_deleted, sqlstate) FROM possync_pull('child')";

# Pulls while the master does something between the snapshot and the reading.
sub pull_beside
{
	my ($change) = @_;
	my $holder = Possync::Session->new($master);
	$holder->run("BEGIN;\nLOCK parent");
	$session->start_sql($pull);
	$master->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'clerk' AND NOT l.granted")
	  or die 'the pull does not wait';
	$master->safe_psql('postgres', $change);
	$holder->run('COMMIT');
	$holder->quit;
	return ($session->answer(20))[0];
}

for my $change (
	'ALTER TABLE child ALTER n TYPE bigint',
	'ALTER TABLE child ALTER n TYPE integer',
	'BEGIN; CREATE TEMP TABLE old AS SELECT * FROM child; TRUNCATE child; INSERT INTO child SELECT * FROM old; COMMIT',
	"BEGIN; CREATE TABLE other (LIKE child INCLUDING ALL); INSERT INTO other SELECT * FROM child; ALTER TABLE child RENAME TO old; ALTER TABLE other RENAME TO child; COMMIT")
{
	my $first = $till->safe_psql('postgres', 'SELECT count(*) = 0 FROM child') eq 't';

	is(pull_beside($change), 'failed|0|0|40001', "$change: tried again");
	is(($session->run($pull))[0], $first ? 'ok|100|0' : 'ok|0|0', 'and then nothing has happened');
	is_same($master, $till, 'SELECT id, n FROM child ORDER BY 1', 'nothing is missing');
}
is(pull_beside('ALTER TABLE child ADD added integer'), 'ok|0|0', 'what leaves the rows where they are does no harm');

$session->quit;
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|XX000/, 'nothing leaked');

done_testing();
