# The files of a master are put back to an older state. Nothing but the numbers of its
# transactions tells, and it gives those that were seen to other transactions.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my %stamps = (t_time => [ 'timestamptz', 'now()', "now() - interval '1 day'" ], t_number => [ 'integer', '1000', '1' ]);

for my $node ($master, $till)
{
	$node->safe_psql('postgres', "CREATE TABLE $_ (id integer PRIMARY KEY, n integer, changed $stamps{$_}[0] NOT NULL)") for sort keys %stamps;
}
$master->safe_psql('postgres', "INSERT INTO $_ SELECT i, i, $stamps{$_}[2] FROM generate_series(1, 10) i") for sort keys %stamps;
connect_till($till, $master->port);
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('$_', server => 'hq'); SELECT possync_set_model('$_', change_columns => '{changed}')") for sort keys %stamps;
my $session = Possync::Session->new($till);

sub pull
{
	my ($table) = @_;
	return ($session->run("SELECT concat_ws('|', status, rows_read, rows_created) FROM possync_pull('$table')"))[0];
}

for my $table (sort keys %stamps)
{
	is(pull($table), 'ok|10|10', "$table: all there is");
}

my $copy = $master->data_dir . '.copy';
$master->stop;
system_or_bail('cp', '-a', $master->data_dir, $copy);
$master->start;
$master->safe_psql('postgres', "UPDATE $_ SET n = -1, changed = $stamps{$_}[1] WHERE id = 1") for sort keys %stamps;
$master->safe_psql('postgres', 'SELECT pg_current_xact_id()') for 1 .. 20;
for my $table (sort keys %stamps)
{
	like(pull($table), qr/^ok\|\d+\|0$/, "$table: what will be lost") for 1 .. 3;
	is($till->safe_psql('postgres', "SELECT n FROM $table WHERE id = 1"), '-1', 'is read');
}
$master->restart;
for my $table (sort keys %stamps)
{
	is(pull($table), 'ok|0|0', "$table: a restart is nothing");
}

$master->stop;
system_or_bail('rm', '-r', $master->data_dir);
rename $copy, $master->data_dir or die "rename: $!";
$master->start;
$master->safe_psql('postgres', "INSERT INTO $_ VALUES (11, 11, $stamps{$_}[1])") for sort keys %stamps;
for my $table (sort keys %stamps)
{
	is(pull($table), 'ok|11|1', "$table: put back, all is read");
	is_same($master, $till, "SELECT id, n FROM $table ORDER BY 1", 'nothing is missing');
	pull($table) for 1 .. 2;
	is(pull($table), 'ok|0|0', 'once');
}

$session->quit;
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|XX000/, 'nothing leaked');

done_testing();
