
=head1 NAME

Possync::Session - a session with a cluster that other things happen beside

=head1 SYNOPSIS

  my $session = Possync::Session->new($till, user => 'cashier');

  my ($out, $err) = $session->run('SELECT 1');
  $session->start_sql("SELECT * FROM possync_pull('product')");
  # ... do something to it ...
  my ($out, $err, $seconds) = $session->answer(10);
  $session->quit;

=head1 DESCRIPTION

Errors do not end the session.  $seconds counts from the last call of mark, or
from start.

=cut

package Possync::Session;

use strict;
use warnings FATAL => 'all';

use IPC::Run qw(start);
use Time::HiRes qw(time usleep);

# Options: dbname, user
sub new
{
	my ($class, $node, %options) = @_;
	my $self = bless { in => '', out => '', err => '', node => $node, number => 0, answered => 0 }, $class;
	my $connection = $node->connstr($options{dbname} // 'postgres');

	$connection .= " user=$options{user}" if defined $options{user};
	$self->{harness} = start([ 'psql', '-qXAt', '-f', '-', '-d', $connection ],
		\$self->{in}, \$self->{out}, \$self->{err});
	($self->{pid}) = $self->run('SELECT pg_backend_pid()');
	die "no session: $self->{err}" unless $self->{pid};
	return $self;
}

sub pid { return $_[0]{pid} }

# Sends a statement and does not wait for its answer.
sub start_sql
{
	my ($self, $sql) = @_;
	$self->{number}++;
	$self->{in} .= "$sql\n;\n\\echo done $self->{number}\n\\warn done $self->{number}\n";
	$self->pump;
	$self->mark;
	return;
}

sub mark { $_[0]{since} = time; return }

# Lets psql read and write.  Returns false if it has ended, which IPC::Run dies of
# if it finds out only then.
sub pump
{
	my ($self) = @_;
	return eval { $self->{harness}->pump_nb; 1 };
}

# Whether the last statement is answered, taken or not
sub is_done
{
	my ($self) = @_;
	return 1 if $self->{answered} == $self->{number};
	return 1 unless $self->pump;
	return $self->{out} =~ /^done $self->{number}$/m
	  && $self->{err} =~ /^done $self->{number}$/m;
}

# Waits for the answer: output, messages, seconds.  A session that ended has
# answered, too.
sub answer
{
	my ($self, $patience) = @_;
	my $end = time + ($patience // 60);

	while (!$self->is_done)
	{
		last unless $self->{harness}->pumpable;
		die "no answer to statement $self->{number}: $self->{out} $self->{err}"
		  if time > $end;
		usleep(10_000);
	}
	my $seconds = time - $self->{since};
	$self->{answered} = $self->{number};
	my @answer = map { s/^done \d+\n//mgr } $self->{out}, $self->{err};
	chomp @answer;
	$self->{out} = $self->{err} = '';
	return (@answer, $seconds);
}

sub run
{
	my ($self, $sql) = @_;
	$self->start_sql($sql);
	return $self->answer;
}

# Waits until the session waits, as pg_stat_activity says: a condition on it.
sub wait_until
{
	my ($self, $condition) = @_;
	$self->{node}->poll_query_until('postgres',
		"SELECT $condition FROM pg_stat_activity WHERE pid = $self->{pid}")
	  or die "session never came to: $condition";
	return;
}

sub quit
{
	my ($self) = @_;
	return unless $self->{harness};
	my $harness = delete $self->{harness};
	$self->{in} .= "\\q\n";
	eval { $harness->finish };
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	$self->{harness}->kill_kill if $self->{harness};
	return;
}

1;
