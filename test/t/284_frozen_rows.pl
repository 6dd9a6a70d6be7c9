# A master that has had more than 2^31 transactions since some rows were written: they are
# frozen, but keep their numbers, which are ahead of the present ones by now.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master', "autovacuum = off\n");
my $till = Possync->cluster('till');

$_->safe_psql('postgres', 'CREATE TABLE item (id integer PRIMARY KEY, n integer, changed timestamptz NOT NULL)') for $master, $till;
$master->safe_psql('postgres', "INSERT INTO item SELECT i, i, now() - interval '1 day' FROM generate_series(1, 10) i; ALTER DATABASE template0 ALLOW_CONNECTIONS true");
connect_till($till, $master->port);
$till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (ADD sweep '1ms'); SELECT * FROM possync_add_model('item', server => 'hq'); SELECT possync_set_model('item', change_columns => '{changed}')");
my $session = Possync::Session->new($till);

sub pull
{
	return ($session->run("SELECT concat_ws('|', status, rows_read, rows_created) FROM possync_pull('item')"))[0];
}

# Goes on with the number of a transaction.
sub advance
{
	my ($xid) = @_;
	$master->safe_psql($_, 'VACUUM FREEZE') for qw(template0 template1 postgres);
	$master->stop;
	system_or_bail('pg_resetwal', '-x', $xid, '-D', $master->data_dir);
	my $file = sprintf '%s/pg_xact/%04X', $master->data_dir, $xid >> 20;
	open my $log, '>', $file or die "$file: $!";
	print $log "\0" x 262144;
	close $log;
	$master->start;
	return;
}

is(pull(), 'ok|10|10', 'all there is');
for my $xid (1_500_000_000, 3_000_000_000, 4_200_000_000)
{
	advance($xid);
	like(pull(), qr/^ok\|\d+\|0$/, "$xid: pulled");
	$master->safe_psql('postgres', 'UPDATE item SET n = n + 1 WHERE id = 1');
	is(pull(), 'ok|1|0', 'a sweep reads what has been written');
	is(pull(), 'ok|0|0', 'and nothing again');
	is_same($master, $till, 'SELECT id, n FROM item ORDER BY 1', 'nothing is missing');
}

$session->quit;
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|XX000/, 'nothing leaked');

done_testing();
