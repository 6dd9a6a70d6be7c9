# What the other tests stand on: two clusters with passwords, and a proxy whose
# failures look like those of a network.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $proxy = Possync::Proxy->new($master->port);

isnt($master->port, $till->port, 'two clusters');
is_same($master, $till, "SELECT rolname FROM pg_roles WHERE rolname = 'clerk'",
	'both know the clerk');

my $address = 'host=127.0.0.1 dbname=postgres user=clerk connect_timeout=2 port=';
my $through = $address . $proxy->port;

# Runs a query as clerk; returns its output and what went wrong.
sub query
{
	my ($connection, $query) = @_;
	local $ENV{PGPASSWORD} = 'secret';
	my ($out, $err) = ('', '');
	IPC::Run::run(
		[ 'psql', '-qXAt', '-d', $connection, '-c', $query ],
		'<' => \undef, '>' => \$out, '2>' => \$err,
		IPC::Run::timeout(20));
	chomp $out;
	return ($out, $err);
}

{
	local $ENV{PGPASSWORD} = 'wrong';
	my ($status, $out, $err) = $master->psql('postgres', 'SELECT 1',
		connstr => $address . $master->port);
	like($err, qr/password authentication failed/, 'passwords are checked');
}

is((query($through, 'SELECT 6 * 7'))[0], '42', 'a query through the proxy');

my $before = $proxy->stats;
is((query($through, "SELECT length(repeat('x', 1000000))"))[0],
	'1000000', 'and another');
my $after = $proxy->stats;
is($after->{connections} - $before->{connections}, 1, 'it used one connection');
cmp_ok($after->{turns}, '>', $before->{turns}, 'round trips are counted');

$proxy->delay(0.05);
my $start = time;
query($through, 'SELECT 1');
cmp_ok(time - $start, '>=', 0.1, 'a slow network');
$proxy->pass;

$proxy->cut_after(100_000);
like((query($through, "SELECT repeat('x', 1000000)"))[1],
	qr/closed|reset|lost/, 'cut in the middle of an answer');
is((query($through, 'SELECT 1'))[0], '1', 'the next connection works');

$proxy->down;
like((query($through, 'SELECT 1'))[1], qr/refused/, 'down');
$proxy->pass;
is((query($through, 'SELECT 1'))[0], '1', 'and up again');

$proxy->blackhole;
like((query($through, 'SELECT 1'))[1], qr/timeout/, 'nothing passes');
$proxy->cut;
$proxy->pass;
is((query($through, 'SELECT 1'))[0], '1', 'and again it does');

my $session;
{
	local $ENV{PGPASSWORD} = 'secret';
	my ($in, $out, $err) = ("SELECT 'here';\n", '', '');
	$session = IPC::Run::start([ 'psql', '-qXAt', '-d', $through ],
		\$in, \$out, \$err, IPC::Run::timeout(20));
	$session->pump until $out =~ /here/;
	$proxy->half_close;
	$in .= "SELECT 'still here';\n";
	$session->finish;
	like($err, qr/closed|lost|no connection/, 'the end of the stream is seen');
}
$proxy->stop;

done_testing();
