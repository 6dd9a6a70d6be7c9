
=head1 NAME

Possync - a master and tills for tests

=head1 SYNOPSIS

  use Possync;

  my $master = Possync->cluster('master');
  my $till = Possync->cluster('till');
  my $proxy = Possync::Proxy->new($master->port);

  shop($master, products => 1000);
  connect_till($till, $proxy->port);
  is_same($master, $till, 'SELECT code FROM tax ORDER BY 1', 'taxes');

=head1 DESCRIPTION

A thin layer over PostgreSQL::Test::Cluster: clusters are made from one
template, listen on 127.0.0.1 where passwords are asked for, and have a role
"clerk" with the password "secret" who may do what a till's user may do at head
office.

=cut

package Possync;

use strict;
use warnings FATAL => 'all';

use Exporter qw(import);
use Fcntl qw(:flock);
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Possync::Proxy;
use Possync::Session;
use Test::More;

our @EXPORT = qw(connect_till shop is_same content);

my $demo = dirname(__FILE__) . '/../../demo';

# Returns a running cluster; $conf is added to its configuration.
sub cluster
{
	my ($class, $name, $conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	init_from_template($node);
	$node->append_conf('postgresql.conf', <<"EOC");
listen_addresses = '127.0.0.1'
max_connections = 30
max_wal_size = 1GB
EOC
	$node->append_conf('postgresql.conf', $conf) if defined $conf;
	$node->start;
	$node->safe_psql('postgres',
		"CREATE ROLE clerk LOGIN PASSWORD 'secret' IN ROLE pg_read_all_data");
	return $node;
}

# The first test that comes makes the template, the others copy it: a cluster
# in a tenth of the time of initdb.
sub init_from_template
{
	my ($node) = @_;
	my $template = "$PostgreSQL::Test::Utils::tmp_check/template";
	my $data = $node->data_dir;

	open my $lock, '>', "$template.lock" or die "$template.lock: $!";
	flock $lock, LOCK_EX or die "flock: $!";
	if (-d $template)
	{
		close $lock;
		mkdir $_ for $node->backup_dir, $node->archive_dir;
		system_or_bail('cp', '-a', $template, $data);
		$node->append_conf('postgresql.conf',
			'port = ' . $node->port . "\nunix_socket_directories = '" . $node->host . "'");
		return;
	}

	$node->init;
	my $hba = slurp_file("$data/pg_hba.conf");
	$hba =~ s/^(host.*)trust/$1scram-sha-256/mg;
	open my $file, '>', "$data/pg_hba.conf" or die "pg_hba.conf: $!";
	print $file $hba;
	close $file;
	system_or_bail('cp', '-a', $data, "$template.new");
	rename "$template.new", $template or die "rename: $!";
	return;
}

# Makes possync in a database of a till and the server "hq" for a port of
# 127.0.0.1.
sub connect_till
{
	my ($till, $port, %options) = @_;
	my $remote = $options{remote} // 'postgres';

	$till->safe_psql($options{dbname} // 'postgres', <<"EOC");
CREATE EXTENSION IF NOT EXISTS possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres
	OPTIONS (host '127.0.0.1', port '$port', dbname '$remote');
CREATE USER MAPPING FOR CURRENT_USER SERVER hq
	OPTIONS (user 'clerk', password 'secret');
EOC
	return;
}

# Loads the shop of the demo; role is 'office' or 'till', see demo/shop.sql.
sub shop
{
	my ($node, %variables) = @_;
	my $database = delete $variables{dbname} // 'postgres';

	$node->command_ok(
		[
			'psql', '-qX', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database),
			(map { ('-v', "$_=$variables{$_}") } sort keys %variables),
			'-f', "$demo/shop.sql"
		],
		'shop loaded into ' . $node->name);
	return;
}

# A line for every table of the user's and of possync's but history, which
# differs if any row of it was written, be it with the same values.
sub content
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres', <<'EOC');
SELECT c.oid::regclass::text || ' ' || coalesce((xpath('/row/md5/text()', query_to_xml(format(
	'SELECT md5(string_agg(concat_ws(%L, t.ctid, t.xmin, t.*::text), %L ORDER BY t.tableoid, t.ctid)) FROM %s t',
	' ', ' ', c.oid::regclass), false, true, '')))[1]::text, 'empty')
FROM pg_class c
WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text !~ '^(pg_|information_schema)'
  AND c.relname <> 'synchronize_history'
ORDER BY c.relnamespace, c.relname
EOC
}

# Both sides give the same, not empty answer to a query.
sub is_same
{
	my ($one, $other, $query, $name) = @_;
	my ($expected, $got) =
	  map { $_->safe_psql('postgres', $query) } $one, $other;

	return ok($expected ne '' && $got eq $expected, $name)
	  || first_difference($expected, $got);
}

sub first_difference
{
	my @sides = map { [ split /\n/ ] } @_;
	my $line = 0;

	$line++
	  while ($sides[0][$line] // '') eq ($sides[1][$line] // '')
	  && $line < @{ $sides[0] };
	diag(scalar @{ $sides[0] }, ' and ', scalar @{ $sides[1] }, ' rows; row ', $line + 1, ":\n",
		$sides[0][$line] // '(none)', "\n", $sides[1][$line] // '(none)');
	return 0;
}

1;
