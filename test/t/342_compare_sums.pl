# Rows whose keys are integers are summed up here as they come past, and hashed by
# their values on both sides: no difference that their texts show may add up to the
# same, and what is equal has to.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Pair;
use Test::More;

my ($master, $till) = pair();

for my $node ($master, $till)
{
	my $there = $node == $master;
	my ($mood, $nocase) = $there ? qw(mood citext) : qw(varchar(9) text);
	$node->safe_psql('postgres', <<"EOC");
CREATE EXTENSION IF NOT EXISTS citext;
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN amount AS numeric(12,2);
CREATE DOMAIN label AS text;
CREATE TABLE parent (id serial PRIMARY KEY, name text UNIQUE NOT NULL);
CREATE TABLE thing (id bigserial PRIMARY KEY, code text UNIQUE NOT NULL, parent integer REFERENCES parent, other integer REFERENCES parent,
	twin bigint REFERENCES thing, b boolean, i2 smallint, i4 integer, i8 bigint, n numeric, a amount, s label, v varchar(20), w text,
	d date, t time, ts timestamp, tz timestamptz, u uuid, bytes bytea, f float8, r real, iv interval, j jsonb, c char(5), arr int[],
	mood $mood, nocase $nocase);
CREATE TABLE bare (id serial PRIMARY KEY);
EOC
}
there(<<'EOC');
INSERT INTO parent (name) SELECT 'P' || i FROM generate_series(1, 50) i;
INSERT INTO bare SELECT FROM generate_series(1, 3000);
INSERT INTO thing SELECT i, 'T' || i, 1 + i % 50, CASE WHEN i % 3 = 0 THEN 1 + i % 7 END, CASE WHEN i > 1 THEN i / 2 END, i % 2 = 0,
	i % 100, -i, i * 12345678901, i / 8.0, i / 100.0, 'label ' || i, repeat('v', i % 20), CASE WHEN i % 5 > 0 THEN repeat(md5(i::text), i % 200) END,
	date '2026-01-01' + i, time '00:00' + i * interval '1 s', timestamp '2026-01-01' + i * interval '1 h', 'infinity', gen_random_uuid(),
	decode(md5(i::text), 'hex'), i / 7.0, i / 7.0, i * interval '1 min', jsonb_build_object('a', i), 'c' || i % 9, ARRAY[i, NULL], 'glad', 'Case ' || i
FROM generate_series(1, 4000) i;
ANALYZE;
EOC
# some rows are here, in another order, and the rest is to be
here(<<'EOC');
ALTER SEQUENCE thing_id_seq RESTART 900000;
ALTER SEQUENCE parent_id_seq RESTART 7000;
INSERT INTO thing (code) SELECT 'T' || 4001 - i FROM generate_series(1, 900) i;
INSERT INTO parent (name) SELECT 'P' || 40 - i FROM generate_series(1, 20) i;
SELECT * FROM possync_add_model('thing', server => 'hq');
SELECT * FROM possync_add_model('bare', server => 'hq');
SELECT possync_set_model('thing', on_delete => 'delete');
EOC

sub told
{
	my ($model) = @_;
	return here("SELECT string_agg(concat_ws(' ', difference, remote_key, CASE difference WHEN 'different' THEN (SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(fields) k) END), ', ' ORDER BY remote_key::int) FROM possync_compare('$model')");
}

sub compared { return here("SELECT concat_ws('|', status, rows_read, rows_updated, rows_deleted, bytes_received < 5000) FROM possync_pull('$_[0]', compare => true)") }

is(here("SELECT concat_ws('|', status, rows_read, rows_matched) FROM possync_pull('thing')"), 'ok|4050|920', 'all is here');
is(here("SELECT concat_ws('|', status, rows_read) FROM possync_pull('bare')"), 'ok|3000', 'and keys alone');
compared($_) for qw(thing bare);
is(told('thing'), '', 'nothing differs');
is(compared('thing'), 'ok|0|0|0|t', 'nothing is read, for sums are the same');
is(compared('bare'), 'ok|0|0|0|t', 'nor of keys alone');

# Pairs of values that a hash of the type, or a sum, takes for the same
my @pairs = (
	[ i2 => '0', 'NULL' ], [ i4 => '-1', '0' ], [ i8 => '-1', '4294967295' ], [ i8 => '12884901893', '21474836483' ],
	[ n => '5', '-5' ], [ n => '1.0', '1.00' ], [ n => "'NaN'", '0' ], [ a => '0.01', '-0.01' ], [ b => 'true', 'NULL' ],
	[ s => "''", 'NULL' ], [ s => "'x '", "'x'" ], [ v => "'a'", "'A'" ], [ w => "repeat('long', 9000)", "repeat('long', 8999) || 'lone'" ],
	[ t => "time '00:00' + interval '12884.901893 s'", "time '00:00' + interval '21474.836483 s'" ],
	[ ts => "timestamp '2000-01-01' + interval '12884.901893 s'", "timestamp '2000-01-01' + interval '21474.836483 s'" ],
	[ tz => "timestamptz '2000-01-01 00:00+00' + interval '12884.901893 s'", "timestamptz '2000-01-01 00:00+00' + interval '21474.836483 s'" ],
	[ d => "'infinity'", "'-infinity'" ], [ bytes => "''", "'\\x00'" ], [ f => "'0'", "'-0'" ], [ r => "'0'", "'-0'" ],
	[ iv => "'1 mon'", "'30 days'" ], [ iv => "'1 day'", "'24:00'" ], [ j => "'{\"a\": 1.0}'", "'{\"a\": 1.00}'" ],
	[ c => "'x'", "'y'" ], [ arr => "'{1,2}'", "'[0:1]={1,2}'" ], [ mood => "'sad'", "'glad'" ], [ nocase => "'abc'", "'ABC'" ],
	[ parent => '1', '2' ], [ other => 'NULL', '1' ], [ twin => '77', 'NULL' ]);
my $update = sub {
	my ($which) = @_;
	my $id = 100;
	there(join ';', map { $id += 3; "UPDATE thing SET $_->[0] = $_->[$which] WHERE id = $id" } @pairs);
};
$update->(1);
compared('thing');
is(told('thing'), '', 'the same');
$update->(2);
like(compared('thing'), qr/^ok\|\d+\|${\ scalar @pairs}\|0/, 'every one has another hash');
is(told('thing'), '', 'and is the same again');
for my $pair (grep { $_->[0] =~ /^(n|i8|tz|nocase|twin)$/ } @pairs)
{
	my ($column, $one, $other) = @$pair;
	there("UPDATE thing SET $column = $one WHERE id = 7");
	compared('thing');
	there("UPDATE thing SET $column = $other WHERE id = 7");
	is(told('thing'), "different 7 $column", "$column: $one is not $other");
}
compared('thing');

# Rows and columns that exchange what they have
for my $column (qw(i4 s tz parent))
{
	there("UPDATE thing SET tz = '2026-01-01 00:00+00' WHERE id = 1001; UPDATE thing SET tz = '2026-01-01 00:01+00' WHERE id = 1002");
	compared('thing');
	there("UPDATE thing t SET $column = o.$column FROM thing o WHERE t.id + o.id = 2003 AND t.id IN (1001, 1002)");
	is(told('thing'), "different 1001 $column, different 1002 $column", "$column: exchanged between rows");
}
there("UPDATE thing SET v = 'left', w = 'right', parent = 3, other = 4 WHERE id = 1003");
compared('thing');
there('UPDATE thing SET v = w, w = v, parent = other, other = parent WHERE id = 1003');
is(told('thing'), 'different 1003 other,parent,v,w', 'exchanged within a row');

# Rows that are not there
there('DELETE FROM thing WHERE id IN (3990, 3995)');
here("DELETE FROM thing WHERE code IN ('T3991', 'T3995')");
there("INSERT INTO thing (id, code) VALUES (4001, 'T4001')");
is(told('thing'), 'different 1003 other,parent,v,w, missing there 3990, lost here 3991, missing here 4001', 'rows that are missing on either side');
like(compared('thing'), qr/^ok\|/, 'are read and deleted');
is(told('thing'), '', 'and nothing differs');
is(compared('thing'), 'ok|0|0|0|t', 'nor is anything read');
there("INSERT INTO thing (id, code) VALUES (3990, 'T3990')");
is(told('thing'), 'missing here 3990', 'one that is there again');
compared('thing');
is(told('thing'), '', 'is here again');

done_testing();
