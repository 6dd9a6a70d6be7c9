# PgBouncer in transaction mode between a till that pushes and the master: each
# transaction may get another session of the master, others get the one before, and
# what one has sent is never a part of what another one does.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Pooler;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;

plan skip_all => 'PgBouncer is not installed' unless Possync::Pooler->installed;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $pooler = Possync::Pooler->new($master);
my $port = $pooler->port;
my $directory = PostgreSQL::Test::Utils::tempdir();

# Starts a program beside the test
sub child
{
	my ($command, %files) = @_;
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		$SIG{__DIE__} = 'DEFAULT';
		open STDIN, '<', $files{in};
		open STDOUT, '>', $files{out};
		open STDERR, '>&', \*STDOUT;
		exec @$command or POSIX::_exit(1);
	}
	return $pid;
}

sales_master($master);
sales_till($till, $port, first_key => 100);
$master->safe_psql('postgres', 'CREATE TABLE noise (n integer); GRANT ALL ON noise TO clerk');
$till->safe_psql('postgres', "ALTER DATABASE postgres SET possync.batch_entries = 40; ALTER SERVER hq OPTIONS (ADD statement_timeout '5s')");

$pooler->start;

# Others come in between, with transactions that they roll back, too
append_to_file("$directory/noise.sql", "BEGIN; INSERT INTO noise VALUES (1); COMMIT;\nBEGIN; INSERT INTO noise VALUES (-1); ROLLBACK;\n" x 10_000);
my @others = map {
	child(["psql", '-qX', '-d', "host=127.0.0.1 port=$port user=clerk password=secret dbname=postgres"],
		in => "$directory/noise.sql", out => "$directory/noise$_")
} 1 .. 4;

my $sold = 0;
for my $round (1 .. 5)
{
	$till->safe_psql('postgres', join ';', map { $sold++; "SELECT sell('s' || to_char($sold, 'FM0000'), NULL, 3)" } 1 .. 60);
	is(push_sales($till), 'ok', "push $round");
}
kill 'TERM', @others;
waitpid $_, 0 for @others;
is(push_sales($till), 'ok', 'the last one');
is_same($till, $master, $sales, 'every sale');
is($master->safe_psql('postgres', "$doubled; $broken"), '', 'once and whole');
is($master->safe_psql('postgres', 'SELECT count(*) FROM noise WHERE n < 0'), 0, 'what others roll back is rolled back');
is(join('', map { slurp_file("$directory/noise$_") } 1 .. 4), '', 'and nobody was disturbed');

# The next batch fails here while one is on its way, behind which nothing was sent: its
# answer is awaited, and it is not sent again
$master->safe_psql('postgres', <<'EOC');
CREATE TABLE arrived (number text);
CREATE FUNCTION arrive() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO arrived VALUES (NEW.number); RETURN NEW; END';
CREATE TRIGGER arrive BEFORE INSERT ON sale FOR EACH ROW EXECUTE FUNCTION arrive();
GRANT INSERT ON arrived TO clerk;
EOC
$till->safe_psql('postgres', join ';', "ALTER DATABASE postgres SET possync.fault = 'error: push beside'", map { "SELECT sell('beside$_', NULL, 3)" } 1 .. 20);
is(push_sales($till), 'ok', 'a batch that fails beside another');
is($master->safe_psql('postgres', 'SELECT count(*), count(DISTINCT number) FROM arrived'), '20|20', 'each row was sent once');

done_testing();
