# Values of every type arrive as they are, and a second pull finds nothing to
# do: what is compared byte by byte here was made from what arrived, so a type
# whose values are not reproduced exactly would be written for ever.

use strict;
use warnings FATAL => 'all';
use utf8;

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', <<'EOC');
datestyle = 'SQL, DMY'
intervalstyle = 'iso_8601'
timezone = 'Pacific/Chatham'
extra_float_digits = 0
bytea_output = 'escape'
xmlbinary = 'hex'
EOC

# Built-in types no column can be filled with: their input functions refuse.
my %impossible = map { $_ => 1 } qw(pg_node_tree pg_ndistinct pg_dependencies
  pg_mcv_list pg_brin_bloom_summary pg_brin_minmax_multi_summary gtsvector);

# The same objects come to have different oids on the two sides.
my $objects = <<'EOC';
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE ROLE somebody;
CREATE SCHEMA other;
CREATE TABLE other."Odd, name" (a int);
CREATE FUNCTION other.twice(integer) RETURNS integer LANGUAGE sql AS 'SELECT $1 + $1';
CREATE OPERATOR other.@@@ (FUNCTION = other.twice, RIGHTARG = integer);
CREATE COLLATION other.simple (provider = libc, locale = 'C');
CREATE TEXT SEARCH CONFIGURATION other.plain (COPY = simple);
CREATE TEXT SEARCH DICTIONARY other.words (TEMPLATE = simple);
CREATE DOMAIN percent AS numeric(5, 2) CHECK (value BETWEEN 0 AND 100);
CREATE DOMAIN pair AS integer[] CHECK (cardinality(value) = 2);
CREATE DOMAIN small_percent AS percent CHECK (value < 10);
CREATE TYPE point3 AS (x float8, y float8, "Z, odd" text);
CREATE TYPE line3 AS (from_point point3, to_points point3[], since timestamptz, share percent, price money);
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");
CREATE DOMAIN positive AS int4range CHECK (lower(value) > 0);
EOC
$till->safe_psql('postgres', <<"EOC");
CREATE TABLE filler (a int, b int, c text[]);
CREATE TYPE filler_type AS ENUM ('a');
CREATE TYPE mood AS ENUM ('happy', 'so "so"', 'sad');
$objects
EOC
$master->safe_psql('postgres', <<"EOC");
$objects
CREATE TYPE mood AS ENUM ('sad', 'so "so"');
ALTER TYPE mood ADD VALUE 'happy' BEFORE 'sad';
EOC

# Values of each type, as SQL literals without their quotes.
my %values = (
	bool => [ 't', 'f' ],
	bytea => [ '', '\x00ff275c', '\x' . '00' x 3000 ],
	'"char"' => [ '', 'a', '\377', "'" ],
	name => [ '', 'x' x 63, 'ñandú' ],
	int8 => [ '-9223372036854775808', '9223372036854775807', '0' ],
	int2 => [ '-32768', '32767' ],
	int4 => [ '-2147483648', '2147483647' ],
	int2vector => [ '', '1 2 -3' ],
	oidvector => [ '', '1 4294967295' ],
	regproc => [ '-', 'other.twice', 'pg_catalog.now' ],
	regprocedure => [ '-', 'other.twice(integer)' ],
	regoper => [ 'other.@@@', '0' ],
	regoperator => [ 'other.@@@(none, integer)', 'pg_catalog.+(integer,integer)' ],
	regclass => [ 'other."Odd, name"', '-', 'pg_class', '4294967295' ],
	regcollation => [ 'other.simple', '"C"' ],
	regtype => [ 'mood', 'mood[]', 'numeric', '-' ],
	regrole => [ 'somebody' ],
	regnamespace => [ 'other', 'pg_catalog' ],
	regconfig => [ 'other.plain', 'english' ],
	regdictionary => [ 'other.words', 'simple' ],
	text => [ '', ' ', "\\\\ \t \n \r \" ' , {} ()", "\x{2603}\x{1F600}\x{0301}", 'NULL' ],
	varchar => [ '', 'abc ', "\x{2603}" ],
	bpchar => [ '', 'abc   ' ],
	oid => [ '0', '4294967295' ],
	tid => [ '(0,1)', '(4294967295,65535)' ],
	xid => [ '0', '4294967295' ],
	xid8 => [ '0', '18446744073709551615' ],
	cid => [ '7' ],
	point => [ '(1,-0)', '(NaN,Infinity)', '(1e-300,1e300)' ],
	lseg => [ '[(1,2),(3,4)]' ],
	path => [ '((0,0),(1,1))', '[(0,0),(1,1),(2,0)]' ],
	box => [ '(3,4),(1,2)' ],
	polygon => [ '((0,0),(1,1),(2,0))' ],
	line => [ '{1,-1,0}' ],
	circle => [ '<(1,2),3>' ],
	float4 => [ 'NaN', 'Infinity', '-Infinity', '-0', '3.4028235e38', '1e-45', '0.1' ],
	float8 => [ 'NaN', 'Infinity', '-Infinity', '-0', '1.7976931348623157e308', '5e-324', '0.1' ],
	money => [ '-92233720368547758.08', '92233720368547758.07', '0' ],
	numeric => [
		'NaN', 'Infinity', '-Infinity', '0', '0.000', '-0', '1.10', '1e131071',
		'1e-16383', '-123456789012345678901234567890.123456789'
	],
	macaddr => [ '08:00:2b:01:02:03' ],
	macaddr8 => [ '08:00:2b:01:02:03:04:05' ],
	inet => [ '10.1.2.3/8', '::1', '2001:db8::1/64' ],
	cidr => [ '10.0.0.0/8', '2001:db8::/32' ],
	date => [ 'infinity', '-infinity', '4713-01-01 BC', '5874897-12-31', '2024-02-29' ],
	time => [ '00:00', '24:00:00', '23:59:59.999999' ],
	timetz => [ '00:00+15:59', '24:00:00-15:59', '12:34:56.789-01:02:03' ],
	timestamp => [ 'infinity', '-infinity', '4713-01-01 00:00 BC', '294276-12-31 23:59:59.999999', '2024-01-02 03:04:05.678901' ],
	timestamptz => [ 'infinity', '-infinity', '4713-01-01 00:00+00 BC', '294276-12-31 23:59:59.999999+00', '2024-01-02 03:04:05.678901+02' ],
	interval => [ '-178000000 years', '1 year -2 months +3 days -04:05:06.789', '-00:00:00.000001', '0', '1 mon 31 days 25:00:00' ],
	bit => [ '1' ],
	varbit => [ '', '101', '1' x 1000 ],
	refcursor => [ 'a cursor', '' ],
	uuid => [ '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff' ],
	xml => [
		'<a b="1">ü</a>', 'just text', '<?xml version="1.0" encoding="UTF-8"?><a>ü</a>',
		'<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?><a/>', '<a/><b/>', ''
	],
	json => [ '{"b": 1,  "a": [null, "\u00fc", 1.10]}', '"\\u0000"', 'null', ' 1 ' ],
	jsonb => [ '{"b": 1,  "a": [null, "\u00fc", 1.10]}', 'null', '1e400', '[]', '{}' ],
	jsonpath => [ '$', 'lax $.a[*] ? (@ > 1)' ],
	tsvector => [ '', "a:1A b:2,3 'x y':4B", 'c b a' ],
	tsquery => [ '', "a & !b | 'c d':*AB", 'a <3> b' ],
	pg_lsn => [ '0/0', 'FFFFFFFF/FFFFFFFF' ],
	txid_snapshot => [ '10:20:10,14,15' ],
	pg_snapshot => [ '10:20:10,14,15' ],
	aclitem => [ 'somebody=r*w/postgres', '=X/postgres' ],
	int4range => [ 'empty', '(,)', '[1,5)', '[-2147483648,2147483647)' ],
	int8range => [ 'empty', '[1,)' ],
	numrange => [ 'empty', '(1.10,Infinity)', '[NaN,NaN]' ],
	daterange => [ '[2024-01-01,infinity)', '(,2024-01-01)' ],
	tsrange => [ '[2024-01-01 00:00,infinity]', 'empty' ],
	tstzrange => [ '(2024-01-01 00:00+00,)', 'empty' ],
	int4multirange => [ '{}', '{[1,2),[5,)}' ],
	int8multirange => [ '{}', '{[1,2),[5,)}' ],
	nummultirange => [ '{}', '{(1.10,2.0],[5,)}' ],
	datemultirange => [ '{[2024-01-01,2024-02-01),[2025-01-01,)}' ],
	tsmultirange => [ '{[2024-01-01 00:00,2024-02-01 00:00)}' ],
	tstzmultirange => [ '{[2024-01-01 00:00+00,2024-02-01 00:00+00)}' ],

	# Ours
	hstore => [ '', 'a=>1, "b c"=>NULL, "ü"=>"\""' ],
	citext => [ '', 'MiXed Ü' ],
	mood => [ 'sad', 'so "so"', 'happy' ],
	percent => [ '99.90', '0' ],
	small_percent => [ '1.5' ],
	pair => [ '{1,2}', '[5:6]={NULL,2}' ],
	positive => [ '[1,3)', '[7,)' ],
	point3 => [ '(NaN,-0,"a ""b"" (c), \\\\")', '(,,)', '(1,,"")' ],
	line3 => [
		'("(1,2,ü)","{""(1,2,a)"",NULL,""(,,)""}","2024-01-02 03:04:05.678+00",5.50,1234.56)',
		'(,,infinity,,-0.01)', '(,{},-infinity,,)'
	],
	textrange => [ '["a, b",c)', 'empty', '(,"\"x")' ]);

# With modifiers, and what only makes sense so
my %modified = (
	'numeric(10,-2)' => [ '1234' ],
	'numeric(4,6)' => [ '0.001234' ],
	'bit(5)' => [ '10101' ],
	'varbit(8)' => [ '101' ],
	'char(5)' => [ 'ab', "\x{2603}" ],
	'varchar(5)' => [ 'ab  ' ],
	'time(0)' => [ '12:34:56' ],
	'timestamptz(3)' => [ '2024-01-02 03:04:05.678+00' ],
	'interval day to second(2)' => [ '-3 04:05:06.78' ],
	'interval year' => [ '-3 years' ],
	'"char"[]' => [ '{a,"","\377"}' ],
	'text[][]' => [ '{}', '[2:3][-1:0]={{a,NULL},{"NULL",""}}', '{{{a}}}', '{" x ","\"","\\\\",ü}' ],
	'pair[]' => [ '{"{1,2}",NULL}' ]);

my $known = $master->safe_psql('postgres', <<'EOC');
SELECT oid::regtype, typtype FROM pg_type
WHERE oid < 10000 AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A'
EOC
my @builtin = map { (split /\|/)[0] } split /\n/, $known;
my %short = ('"char"' => '"char"', character => 'bpchar', 'character varying' => 'varchar',
	boolean => 'bool', integer => 'int4', bigint => 'int8', smallint => 'int2', real => 'float4',
	'double precision' => 'float8', 'bit varying' => 'varbit',
	'time without time zone' => 'time', 'time with time zone' => 'timetz',
	'timestamp without time zone' => 'timestamp', 'timestamp with time zone' => 'timestamptz');
my @forgotten = grep { !$impossible{$_} && !$values{ $short{$_} // $_ } } @builtin;
is("@forgotten", '', 'no built-in type is forgotten');
my %here = map { ($short{$_} // $_) => 1 } @builtin;
my @gone = grep { /range$/ && !$here{$_} && $_ ne 'textrange' } sort keys %values;
is("@gone", '', 'every range is known to this version');

# One table for every type: a value a row, alone and in arrays.  char() fixes
# the length of what it has not.
my (@tables, $create, $fill);
$create = $fill = '';
foreach my $type (sort(keys %values), sort keys %modified)
{
	my $is_array = $type =~ /\[\]/;
	my $n = @tables + 1;
	my $name = sprintf 't%03d', $n;
	my $column = $type eq 'bpchar' ? 'pg_catalog.bpchar' : $type;
	my $array = $is_array ? 'int[]' : "$column\[]";

	push @tables, [ $name, $type ];
	$create .= "CREATE TABLE $name (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
	  . " code text NOT NULL UNIQUE, v $column, a $array);\n"
	  . "COMMENT ON TABLE $name IS \$\$$type\$\$;\n";
	my $i = 0;
	foreach my $value (@{ $values{$type} // $modified{$type} })
	{
		my $literal = "'" . ($value =~ s/'/''/gr) . "'";
		my $arrays = $is_array ? 'NULL' : $type =~ /^(int2|oid)vector$/
		  ? "'{NULL,\"$value\"}'" : "ARRAY[NULL, $literal, $literal]::$array";
		$fill .= "INSERT INTO $name (code, v, a) VALUES ('v$i', ${literal}::$column, $arrays);\n";
		$i++;
	}
	$fill .= "INSERT INTO $name (code, v, a) VALUES ('null', NULL, '{}'), ('nulls', NULL, NULL);\n";
	$fill .= "INSERT INTO $name (code, a)"
	  . " SELECT 'matrix', ('[0:0][3:' || 2 + cardinality(v) || ']={' || v::text || '}')::$array"
	  . " FROM (SELECT array_agg(v) FILTER (WHERE v IS NOT NULL) FROM $name) x (v);\n"
	  unless $is_array || $type =~ /^((int2|oid)vector|pair)$/;
}

# What a column holds when it is large: stored outside the table, compressed
# and not, and a little above the limits.
$create .= <<'EOC';
CREATE TABLE large (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE,
	t text, e text, j jsonb, b bytea, a text[], c point3, n numeric, x xml, h hstore);
ALTER TABLE large ALTER e SET STORAGE EXTERNAL;
EOC
$fill .= <<'EOC';
INSERT INTO large (code, t, e, j, b, a, c, n, x, h)
SELECT code, t, t, jsonb_build_object('k', t), convert_to(t, 'UTF8'), ARRAY[t, NULL, t],
	(1, 2, t)::point3, repeat('7', least(length(t), 100000))::numeric,
	xmlelement(name a, t), hstore('k', t)
FROM (SELECT 'random', string_agg(md5(i::text), '') FROM generate_series(1, 32768) i
	  UNION ALL SELECT 'repeated ' || n, repeat('é', n) FROM unnest('{126,127,2000,2048,1000000}'::int[]) n) s (code, t);
EOC
push @tables, [ 'large', 'large values' ];

utf8::encode($_) for $create, $fill;
psql_file($master, 'master.sql', "$create$fill");
psql_file($till, 'till.sql', $create);
connect_till($till, $master->port);
my $models = join "\n",
  map { "SELECT FROM possync_add_model('$_->[0]', server => 'hq');" } @tables;
$till->safe_psql('postgres', $models);

sub psql_file
{
	my ($node, $name, $sql) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/types_$name";
	open my $out, '>:raw', $file or die "$file: $!";
	print $out "SET client_encoding = 'UTF8'; SET client_min_messages = warning; SET extra_float_digits = 3;\n$sql";
	close $out;
	$node->command_ok([ 'psql', '-qX', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', $file ],
		"$name loaded");
	unlink $file;
	return;
}

# Pulls all tables in one session.
sub pull_all
{
	my ($how) = @_;
	my $sql = join "\n", map {
		"SELECT model, status, rows_read, rows_created, rows_updated, rows_left_out,"
		  . " error, error_context FROM possync_pull('$_->[0]'$how);"
	} @tables;
	return map { [ split /\|/, $_, -1 ] } split /\n/, $till->safe_psql('postgres', $sql);
}

# Everything that tells of a table's versions of rows.
my $traces = join "\nUNION ALL\n", map {
	"SELECT '$_->[0]' || xmin || ctid FROM $_->[0]"
} @tables;

# The row's text as it would look on a neutral client, its size and, where it
# has one, its binary form
sub content_of
{
	my ($node) = @_;
	my %content;
	my $settings = "SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = 'UTC';"
	  . " SET extra_float_digits = 3; SET bytea_output = hex; SET search_path = '';";
	foreach my $table (@tables)
	{
		my ($name, $type) = @$table;
		my $query = $name eq 'large'
		  ? 'SELECT code, md5(t), md5(e), md5(j::text), md5(b), md5(a::text), md5(c::text),'
		  . ' md5(n::text), md5(x::text), md5(h::text), octet_length(t) FROM public.large ORDER BY code COLLATE "C"'
		  : "SELECT code, v::text, a::text, CASE WHEN v IS NULL THEN 0 ELSE pg_column_size(ROW(v)) END,"
		  . " array_ndims(a), array_lower(a, 1) FROM public.$name ORDER BY code COLLATE \"C\"";
		$content{$name} = $node->safe_psql('postgres', "$settings $query");
	}
	return \%content;
}

my $t0 = $till->safe_psql('postgres', $traces);
my @dry = pull_all(', dry_run => true');
is($till->safe_psql('postgres', $traces), $t0, 'a dry run writes nothing');

my @first = pull_all('');
foreach my $i (0 .. $#tables)
{
	my ($name, $type) = @{ $tables[$i] };
	my @counts = @{ $first[$i] };
	ok($counts[1] eq 'ok' && $counts[2] > 0 && $counts[3] == $counts[2], "$type: pulled")
	  || diag(join '|', @counts);
	is(join('|', @{ $dry[$i] }[ 2 .. 5 ]), join('|', @counts[ 2 .. 5 ]), "$type: as the dry run said");
}

my ($there, $here) = (content_of($master), content_of($till));
foreach (@tables)
{
	my ($name, $type) = @$_;
	is($here->{$name}, $there->{$name}, "$type: the same values");
}
my $before = $till->safe_psql('postgres', $traces);
my @second = pull_all('');
foreach my $i (0 .. $#tables)
{
	my @counts = @{ $second[$i] };
	ok($counts[1] eq 'ok' && $counts[2] > 0 && "$counts[3]$counts[4]$counts[5]" eq '000',
		"$tables[$i][1]: nothing to do")
	  || diag(join '|', @counts);
}
is($till->safe_psql('postgres', $traces), $before, 'and nothing was written');
is($till->safe_psql('postgres', 'SELECT sum(n_tup_upd) FROM pg_stat_user_tables WHERE relname ~ $$^t\d|^large$$'),
	'0', 'no row was ever updated');

# What is matched with rows from here is recognised as the same, too: rows that
# were pulled, then rows that were typed in.
$till->safe_psql('postgres', 'TRUNCATE synchronize_translation');
@second = pull_all('');
foreach my $i (0 .. $#tables)
{
	my @counts = @{ $second[$i] };
	ok($counts[1] eq 'ok' && $counts[2] > 0 && "$counts[3]$counts[4]$counts[5]" eq '000',
		"$tables[$i][1]: matched, nothing to do")
	  || diag(join '|', @counts);
}

# The order of a query's operands in memory, and the encoding an XML document
# once had, do not travel.
my %respelled = (tsquery => 1, xml => 1);
my $drop = join ', ', map { $_->[0] } @tables;
$till->safe_psql('postgres', "DROP TABLE $drop; TRUNCATE synchronize_translation");
psql_file($till, 'typed_in.sql', "SET datestyle = ISO;\n$create$fill");
$till->safe_psql('postgres', "DELETE FROM synchronize_model; $models");
@second = pull_all('');
foreach my $i (0 .. $#tables)
{
	my @counts = @{ $second[$i] };
	ok($counts[1] eq 'ok' && $counts[2] > 0 && "$counts[3]$counts[5]" eq '00'
		  && ($counts[4] == 0 || $respelled{ $tables[$i][1] }),
		"$tables[$i][1]: as typed in here")
	  || diag(join '|', @counts);
}
is((grep { $_->[4] > 0 } pull_all('')), 0, 'and nothing is left to do');

# And back: the same values in rows of the till's, written in the odd settings
# of its sessions, then changed, then gone.
$master->safe_psql('postgres', 'GRANT pg_write_all_data TO clerk; ALTER DATABASE postgres SET datestyle = $$SQL, DMY$$');
my $push = "SELECT status, rows_created, rows_updated, error, error_context FROM possync_push('t001');";
$till->safe_psql('postgres', join "\n", map { "SELECT FROM possync_queue('$_->[0]');" } @tables);
$till->safe_psql('postgres', join "\n", map {
	my $columns = $_->[0] eq 'large' ? 't, e, j, b, a, c, n, x, h' : 'v, a';
	"INSERT INTO $_->[0] (code, $columns) SELECT 'sold ' || code, $columns FROM $_->[0];"
} @tables);
my ($waiting) = $till->safe_psql('postgres', 'SELECT count(*) FROM synchronize_queue');
like($till->safe_psql('postgres', $push), qr/^ok\|$waiting\|0\|/, "$waiting rows pushed");
is($till->safe_psql('postgres', 'SELECT model, reason, message, detail FROM synchronize_quarantine'), '', 'none was refused');

# The encoding that an XML document once had stays here.
sub neutral { return $_[0] =~ s/<\?xml version="1.0" encoding="UTF-8"\?>| encoding="ISO-8859-1"//gr =~ s/\|(?:72|89)\|1\|1$/|xml|1|1/gmr =~ s/\|(?:34|67)\|1\|1$/|xml|1|1/gmr; }
($there, $here) = (content_of($master), content_of($till));
foreach (@tables)
{
	my ($name, $type) = @$_;
	is(neutral($there->{$name}), neutral($here->{$name}), "$type: the same values pushed");
}

$till->safe_psql('postgres', join "\n", map {
	my @columns = $_->[0] eq 'large' ? qw(t e j b a c n x h) : qw(v a);
	my $list = join ', ', @columns;
	my $other = join ', ', map { "o.$_" } @columns;
	"UPDATE $_->[0] t SET ($list) = ROW($other) FROM"
	  . " (SELECT id, lag(id) OVER (ORDER BY id) AS next FROM $_->[0] WHERE code LIKE 'sold %') n"
	  . " JOIN $_->[0] o ON o.id = n.next WHERE t.id = n.id;"
} @tables);
like($till->safe_psql('postgres', $push), qr/^ok\|0\|/, 'values change places');
($there, $here) = (content_of($master), content_of($till));
foreach (@tables)
{
	my ($name, $type) = @$_;
	is(neutral($there->{$name}), neutral($here->{$name}), "$type: the same values updated");
}

$till->safe_psql('postgres', join "\n", map { "DELETE FROM $_->[0] WHERE code LIKE 'sold %';" } @tables);
like($till->safe_psql('postgres', $push), qr/^ok\|0\|/, 'rows are gone');
is_deeply(content_of($master), content_of($till), 'at the master, too');

done_testing();
