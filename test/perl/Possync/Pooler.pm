
=head1 NAME

Possync::Pooler - PgBouncer in transaction mode before a cluster

=head1 SYNOPSIS

  plan skip_all => 'PgBouncer is not installed' unless Possync::Pooler->installed;
  my $pooler = Possync::Pooler->new($master);
  $pooler->start;
  connect_till($till, $pooler->port);
  $pooler->stop('INT');

=head1 DESCRIPTION

It has three sessions of the cluster for all its clients, and gives them out in turn, so
each transaction gets another one. The port is known before it is started, and stays.

From version 1.21 on PgBouncer can prepare what its clients prepare in every session that
it gives them, and from 1.24 on it does; C<keep_statements> chooses, before a start, and
returns false where there is no choice.

=cut

package Possync::Pooler;

use strict;
use warnings FATAL => 'all';

use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my ($program) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';

sub installed { return defined $program }
sub port { return $_[0]{port} }

sub new
{
	my ($class, $node) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my $self = bless { port => PostgreSQL::Test::Cluster::get_free_port(), directory => $directory }, $class;

	append_to_file("$directory/users", qq{"clerk" "secret"\n});
	append_to_file("$directory/pgbouncer.ini", <<"EOC");
[databases]
postgres = host=127.0.0.1 port=${\ $node->port} dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $self->{port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $directory/users
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
pidfile = $directory/pid
logfile = $directory/log
admin_users = clerk
EOC
	return $self;
}

sub keep_statements
{
	my ($self, $number) = @_;

	return 0 if `$program --version` =~ /PgBouncer 1\.(\d+)/ && $1 < 21;
	append_to_file("$self->{directory}/pgbouncer.ini", "max_prepared_statements = $number\n");
	return 1;
}

sub start
{
	my ($self) = @_;

	$self->{pid} = fork() // die "fork: $!";
	if ($self->{pid} == 0)
	{
		open STDOUT, '>', "$self->{directory}/out";
		open STDERR, '>&', \*STDOUT;
		exec $program, "$self->{directory}/pgbouncer.ini" or POSIX::_exit(1);
	}
	for (1 .. 100)
	{
		last if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port});
		select undef, undef, undef, 0.1;
	}
	return;
}

sub stop
{
	my ($self, $signal) = @_;

	kill $signal, $self->{pid};
	waitpid $self->{pid}, 0;
	undef $self->{pid};
	return;
}

sub DESTROY
{
	my ($self) = @_;

	local ($?, $!);
	$self->stop('KILL') if $self->{pid};
	return;
}

1;
