
=head1 NAME

Possync::Copy - databases of a master and of tills with the same tables

=head1 DESCRIPTION

A master database is made from SQL; tills get its tables, empty or with a part
of its rows under other keys.

=cut

package Possync::Copy;

use strict;
use warnings FATAL => 'all';

use Exporter qw(import);
use Possync;
use Possync::Content;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(run_sql copy_schema number_on pull_all versions is_content);

# Runs SQL of any length in a database, and dies of an error.
sub run_sql
{
	my ($node, $dbname, $sql) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'psql', '-qXAt', '-v', 'ON_ERROR_STOP=1', '-f', '-', '-d', $node->connstr($dbname) ],
		'<' => \$sql, '>' => \$out, '2>' => \$err)
	  or die "$err\nin database $dbname of " . $node->name;
	note($err) if $err ne '';
	chomp $out;
	return $out;
}

# Makes a database on a till with the tables of the master's, and its server.
sub copy_schema
{
	my ($master, $remote, $till, $dbname) = @_;
	my ($schema, $err) = ('', '');

	IPC::Run::run([ 'pg_dump', '-s', '-d', $master->connstr($remote) ],
		'>' => \$schema, '2>' => \$err) or die "pg_dump: $err";
	$till->safe_psql('postgres', qq{CREATE DATABASE "$dbname"});
	run_sql($till, $dbname, $schema);
	connect_till($till, $master->port, dbname => $dbname, remote => $remote);
	return;
}

# Sequences go on after the highest number of their columns.
sub number_on
{
	my ($node, $dbname) = @_;

	run_sql($node, $dbname, <<'EOC');
DO $$
DECLARE
	c record;
	highest bigint;
BEGIN
	FOR c IN
		SELECT d.objid::regclass AS sequence, d.refobjid::regclass AS owner, a.attname
		FROM pg_depend d
		JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
		JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
		WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
		  AND d.deptype IN ('a', 'i') AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
		  AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.objid = d.refobjid AND e.deptype = 'e')
	LOOP
		EXECUTE format('SELECT max(%I) FROM %s', c.attname, c.owner) INTO highest;
		PERFORM setval(c.sequence, highest) WHERE highest > 0;
	END LOOP;
END $$;
EOC
	return;
}

# Pulls models one after the other; returns what was done in all: status,
# created, matched, updated and left out.
sub pull_all
{
	my ($till, $dbname, @models) = @_;
	my $list = join ', ', map { my $name = $_; $name =~ s/'/''/g; "('$name')" } @models;

	return run_sql($till, $dbname, <<"EOC");
SELECT coalesce(min(concat_ws(E'\\n', status, p.model, error, error_detail, error_context)) FILTER (WHERE status <> 'ok'), 'ok'),
	sum(rows_created), sum(rows_matched), sum(rows_updated), sum(rows_left_out)
FROM (VALUES $list) m (name) CROSS JOIN LATERAL possync_pull(m.name) p
EOC
}

# Which row versions a database's own tables consist of.
sub versions
{
	my ($till, $dbname) = @_;

	return run_sql($till, $dbname, <<'EOC');
SELECT string_agg(c.oid::regclass || ': ' || (xpath('/row/v/text()', query_to_xml(format(
	'SELECT md5(string_agg(ctid::text || xmin, '','' ORDER BY ctid)) AS v FROM ONLY %s', c.oid::regclass),
	false, true, '')))[1]::text, E'\n' ORDER BY c.oid)
FROM pg_class c
WHERE c.relkind = 'r' AND c.oid >= 16384
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e' AND c.relname ~ 'history|position')
EOC
}

# The till says what the master says, and what it had of its own.
sub is_content
{
	my ($expected, $got, $own, $name) = @_;
	my @differences = Possync::Content::differences($expected->rows, $got->rows, $own // {});

	return ok(@differences == 0, $name)
	  || diag(scalar @differences . " differences\n" . join("\n", @differences[ 0 .. ($#differences < 9 ? $#differences : 9) ]));
}

1;
