# A connection is lost when the end of a transaction is on its way, and the one that
# takes its place is, too: nothing has arrived, and nothing may say that it has.

use strict;
use warnings FATAL => 'all';
use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;
use IO::Socket::INET;
use IO::Select;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
# A proxy that, while the flag file is there, resets a connection instead of passing on
# the first COMMIT of a client
my $flag = $master->basedir . '/cut';
my $listener = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', LocalPort => 0) || die;
my $pid = fork();
if ($pid == 0)
{
	$SIG{__DIE__} = 'DEFAULT'; $SIG{PIPE} = 'IGNORE';
	my %peer; my %client; my $sel = IO::Select->new($listener);
	while (1)
	{
		for my $s ($sel->can_read(1))
		{
			if ($s == $listener)
			{
				my $c = $listener->accept or next;
				my $v = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $master->port) or next;
				$peer{$c} = $v; $peer{$v} = $c; $client{$c} = 1; $sel->add($c, $v);
				next;
			}
			my $p = $peer{$s} or next;
			my $n = sysread $s, my $buf, 65536;
			my $bad = $client{$s} && $n && -e $flag && $buf =~ /COMMIT\0/;
			if (!$n || $bad)
			{
				if ($bad) { open my $f, '>>', "$flag.log"; print $f "cut\n"; close $f; }
				for my $x ($s, $p) { setsockopt($x, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)) if $bad; $sel->remove($x); delete $peer{$x}; close $x; }
				next;
			}
			my $o = 0;
			while ($o < $n) { my $w = syswrite $p, $buf, $n - $o, $o; last unless $w; $o += $w; }
		}
		POSIX::_exit(0) if getppid() == 1;
	}
}
sales_master($master);
sales_till($till, $listener->sockport, first_key => 100);
sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }
on_till("SELECT sell('warm', NULL, 1)");
is(push_sales($till), 'ok', 'warm');
on_till("UPDATE sale SET sold_at = '2001-01-01' WHERE number = 'warm'");
open my $f, '>', $flag; close $f;
isnt(push_sales($till), 'ok', 'a push whose connection is lost twice fails');
unlink $flag;
is(() = slurp_file("$flag.log") =~ /cut/g, 2, 'it was lost twice');
is(on_till('SELECT count(*) FROM synchronize_queue'), '1', 'what was not sent waits');
is(push_sales($till), 'ok', 'it is sent again');
is(on_master("SELECT sold_at::date FROM sale WHERE number = 'warm'"), '2001-01-01', 'the update is at the master');
kill 'TERM', $pid;
waitpid $pid, 0;
done_testing();
