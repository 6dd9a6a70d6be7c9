
=head1 NAME

Possync::Proxy - a network that can be made to fail

=head1 SYNOPSIS

  my $proxy = Possync::Proxy->new($master->port);
  # connect to 127.0.0.1, $proxy->port

  $proxy->delay(0.01);       # every byte takes 10 ms each way
  $proxy->cut;               # every connection is reset; new ones work
  $proxy->cut_after(10_000); # the same after so many bytes from the server
  $proxy->cut_after_sent(10_000);  # or from clients
  $proxy->half_close;        # clients see the end of the stream
  $proxy->blackhole;         # connections stay, nothing passes any more
  $proxy->hole_after(1_000); # the same after so many bytes from the server
  $proxy->down;              # connections are reset, new ones refused
  $proxy->pass;              # all well again

  my $before = $proxy->stats;    # connections, sent, received, turns

=head1 DESCRIPTION

A process between clients and a server on 127.0.0.1.  Every method returns
after the change has taken effect.  A turn is counted when a client speaks
after its server has spoken, so one round trip is one turn.

=cut

package Possync::Proxy;

use strict;
use warnings FATAL => 'all';

use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Socket qw(AF_UNIX SOCK_STREAM PF_UNSPEC SOL_SOCKET SO_LINGER SHUT_WR
  IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(time);

# Starts a proxy for a port of 127.0.0.1.
sub new
{
	my ($class, $server_port) = @_;
	my $listener = listen_on(0);

	socketpair(my $control, my $peer, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
	  or die "socketpair: $!";
	$_->autoflush(1) for $control, $peer;

	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		# Without the handlers of the test, above all its END blocks
		close $control;
		$SIG{__DIE__} = 'DEFAULT';
		$SIG{PIPE} = 'IGNORE';
		eval { serve($server_port, $listener, $peer); 1 }
		  or print STDERR "proxy: $@";
		POSIX::_exit(0);
	}
	close $peer;

	return bless {
		pid => $pid,
		port => $listener->sockport,
		control => $control
	}, $class;
}

sub port { return $_[0]{port} }

sub delay { return $_[0]->command("delay $_[1]") }
sub cut { return $_[0]->command('cut') }
sub cut_after { return $_[0]->command("cut_after $_[1]") }
sub cut_after_sent { return $_[0]->command("cut_after_sent $_[1]") }
sub hole_after { return $_[0]->command("hole_after $_[1]") }
sub half_close { return $_[0]->command('half_close') }
sub blackhole { return $_[0]->command('blackhole') }
sub down { return $_[0]->command('down') }
sub pass { return $_[0]->command('pass') }

sub stats
{
	my ($self) = @_;
	return { split ' ', $self->command('stats') };
}

sub stop
{
	my ($self) = @_;
	return unless $self->{control};
	close delete $self->{control};
	waitpid $self->{pid}, 0;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!);
	$self->stop;
	return;
}

sub command
{
	my ($self, $line) = @_;
	print { $self->{control} } "$line\n";
	my $answer = readline $self->{control};
	die "proxy is gone" unless defined $answer;
	chomp $answer;
	return $answer;
}

sub listen_on
{
	my ($port) = @_;
	return IO::Socket::INET->new(
		Listen => 64,
		LocalAddr => '127.0.0.1',
		LocalPort => $port,
		ReuseAddr => 1) || die "could not listen: $!";
}

# The process itself.  A stream is one direction of a connection: what was read
# from {from} waits in {queue}, as [time, bytes], to be written to {to}.
sub serve
{
	my ($server_port, $listener, $control) = @_;
	my $port = $listener->sockport;
	my %streams;    # by fileno of from
	my ($delay, $blackhole, $left) = (0, 0, undef);
	my $from_client = 0;    # whose bytes are left
	my $end;    # what happens when none are left
	my %stats = map { $_ => 0 } qw(connections sent received turns);

	my $drop = sub {
		my ($stream, $reset) = @_;
		for my $socket ($stream->{from}, $stream->{to})
		{
			next unless delete $streams{ fileno($socket) // next };
			setsockopt($socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0))
			  if $reset;
			close $socket;
		}
	};
	my $drop_all = sub { $drop->($_, 1) for my @all = values %streams };

	my %commands = (
		delay => sub { $delay = $_[0] },
		cut => $drop_all,
		cut_after => sub { ($left, $from_client, $end) = ($_[0], 0, $drop_all) },
		cut_after_sent => sub { ($left, $from_client, $end) = ($_[0], 1, $drop_all) },
		hole_after => sub { ($left, $from_client, $end) = ($_[0], 0, sub { $blackhole = 1 }) },
		half_close => sub {
			shutdown($_->{to}, SHUT_WR)
			  for grep { !$_->{client} } values %streams;
		},
		blackhole => sub { $blackhole = 1 },
		down => sub { $drop_all->(); close $listener if $listener; $listener = undef },
		pass => sub {
			($delay, $blackhole, $left) = (0, 0, undef);
			$listener //= listen_on($port);
		},
		stats => sub { });

	while (1)
	{
		# Wait for bytes, for a command, or for the next bytes to fall due
		my $now = time;
		my ($due) =
		  sort { $a <=> $b } map { $_->{queue}[0][0] }
		  grep { @{ $_->{queue} } } values %streams;
		my $readers = IO::Select->new($control,
			grep { defined } $listener,
			$blackhole ? () : map { $_->{eof} ? () : $_->{from} } values %streams);
		my $wait = defined $due && !$blackhole ? $due - $now : undef;
		my @ready = $readers->can_read(
			defined $wait ? ($wait > 0 ? $wait : 0) : undef);

		for my $socket (@ready)
		{
			if ($socket == $control)
			{
				my $line = readline $control;
				return unless defined $line;
				my ($command, $argument) = split ' ', $line;
				$commands{$command}->($argument);
				print $control join(' ', %stats), "\n";
			}
			elsif ($listener && $socket == $listener)
			{
				my $client = $listener->accept or next;
				my $server = IO::Socket::INET->new(
					PeerAddr => '127.0.0.1',
					PeerPort => $server_port);
				next unless $server;
				setsockopt($_, IPPROTO_TCP, TCP_NODELAY, 1)
				  for $client, $server;
				$stats{connections}++;
				my $pair = { last => 'server' };
				$streams{ fileno $client } = {
					from => $client, to => $server, queue => [],
					client => 1, pair => $pair };
				$streams{ fileno $server } = {
					from => $server, to => $client, queue => [],
					client => 0, pair => $pair };
			}
			elsif (my $stream = $streams{ fileno($socket) // next })
			{
				my $bytes = '';
				if (!sysread $socket, $bytes, 65536)
				{
					$stream->{eof} = 1;
					push @{ $stream->{queue} }, [ time + $delay, undef ];
					next;
				}
				my $side = $stream->{client} ? 'client' : 'server';
				$stats{turns}++
				  if $stream->{client} && $stream->{pair}{last} eq 'server';
				$stream->{pair}{last} = $side;
				$stats{ $stream->{client} ? 'sent' : 'received' } += length $bytes;
				push @{ $stream->{queue} }, [ time + $delay, $bytes ];
			}
		}
		next if $blackhole;

		# Deliver what is due
		$now = time;
		for my $stream (my @all = values %streams)
		{
			while (defined fileno $stream->{from}
				&& @{ $stream->{queue} }
				&& $stream->{queue}[0][0] <= $now)
			{
				my $bytes = (shift @{ $stream->{queue} })->[1];
				if (!defined $bytes)
				{
					$drop->($stream);
					last;
				}
				if (defined $left && $stream->{client} == $from_client)
				{
					$left -= length $bytes;
					substr($bytes, $left) = '' if $left < 0;
				}
				if (!write_all($stream->{to}, $bytes))
				{
					$drop->($stream);
					last;
				}
				if (defined $left && $left <= 0)
				{
					$left = undef;
					$end->();
					last;
				}
			}
		}
	}
}

# Blocks if the other side does not read: one slow client holds up the rest,
# which no test minds.
sub write_all
{
	my ($socket, $bytes) = @_;
	while (length $bytes)
	{
		my $written = syswrite $socket, $bytes;
		return 0 unless defined $written;
		substr($bytes, 0, $written) = '';
	}
	return 1;
}

1;
