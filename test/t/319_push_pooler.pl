# PgBouncer in transaction mode between a till that pushes and the master: each
# transaction may get another session of the master, others get the one before, and
# what one has sent is never a part of what another one does.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use IO::Socket::INET;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';
plan skip_all => 'PgBouncer is not installed' unless $pgbouncer;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $directory = PostgreSQL::Test::Utils::tempdir();
my %children;

sub child
{
	my ($command, %files) = @_;
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		$SIG{__DIE__} = 'DEFAULT';
		open STDIN, '<', $files{in} // '/dev/null';
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

append_to_file("$directory/users", qq{"clerk" "secret"\n});
append_to_file("$directory/pgbouncer.ini", <<"EOC");
[databases]
postgres = host=127.0.0.1 port=${\ $master->port} dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $directory/users
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
pidfile = $directory/pid
logfile = $directory/log
EOC
my $pooler = child([$pgbouncer, "$directory/pgbouncer.ini"], out => "$directory/out");
for (1 .. 100)
{
	last if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
	select undef, undef, undef, 0.1;
}

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

kill 'TERM', $pooler;
waitpid $pooler, 0;
done_testing();
