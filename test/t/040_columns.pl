# Columns that are not the same on both sides: other types, other orders, other
# names, missing ones; and local tables that have something to say themselves.

use strict;
use warnings FATAL => 'all';

use Possync;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $table = 0;

connect_till($till, $master->port);

# Runs a query on the till as psql prints it; notices and errors come last.
sub query
{
	my ($sql) = @_;
	my ($status, $out, $err) = $till->psql('postgres', $sql);
	return $err ne '' ? "$out\n$err" : $out;
}

# Pulls for real after a dry run, which must have promised the same.
sub pull
{
	my ($model, $name) = @_;
	my $run = "SELECT status, rows_read, rows_created, rows_matched, rows_updated,"
	  . " rows_unchanged, rows_left_out, concat_ws(' / ', error, error_detail, error_context)";
	my ($promised) = split /\n(?=psql)/, query("$run FROM possync_pull('$model', dry_run => true)");
	my ($done) = split /\n(?=psql)/, query("$run FROM possync_pull('$model')");
	my $expected = $done =~ s/^ok/dry run/r;
	is($promised, $expected, "$name: as the dry run said") if $done =~ /^ok/;
	return $done =~ s/\|$//r;
}

# A column of one type there and another one here: rows are made with key id
# and column v.  Returns the model's name.
sub pair
{
	my ($there, $here, @values) = @_;
	my $name = 'p' . ++$table;
	$master->safe_psql('postgres', join ';', "CREATE TABLE $name (code text PRIMARY KEY, v $there)",
		map { "INSERT INTO $name VALUES ('v$_', $values[$_])" } 0 .. $#values);
	$till->safe_psql('postgres', "CREATE TABLE $name (v $here, code text PRIMARY KEY);"
		  . "SELECT FROM possync_add_model('$name', server => 'hq')");
	return $name;
}

sub all_of
{
	my ($name) = @_;
	return $till->safe_psql('postgres',
		"SELECT string_agg(coalesce(v::text, 'null'), '|' ORDER BY code) FROM $name");
}

my $types = <<'EOC';
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN percent AS numeric CHECK (value BETWEEN 0 AND 100);
CREATE DOMAIN required AS text NOT NULL;
CREATE DOMAIN initial AS text NOT NULL DEFAULT 'none';
CREATE TYPE old_pair AS (a int, b text);
EOC
$_->safe_psql('postgres', $types) for $master, $till;

# What is assignable arrives as an INSERT of the remote value would store it
my @assignable = (
	[ 'int4', 'int8', [ '-7', 'NULL' ], '-7|null' ],
	[ 'int8', 'int2', ['7'], '7' ],
	[ 'int4', 'numeric', ['7'], '7' ],
	[ 'int4', 'float8', ['7'], '7' ],
	[ 'numeric', 'int4', [ '7.5', '-7.5' ], '8|-8' ],
	[ 'numeric', 'numeric(6,2)', [ '1.005', '9999.994' ], '1.01|9999.99' ],
	[ 'numeric(10,4)', 'numeric(10,1)', ['1.25'], '1.3' ],
	[ 'float8', 'numeric(6,2)', ['0.125'], '0.13' ],
	[ 'varchar(20)', 'text', ["'a '"], 'a ' ],
	[ 'char(5)', 'text', ["'a'"], 'a' ],
	[ 'text', 'char(5)', ["'a'"], 'a' ],
	[ 'text', 'varchar(3)', [ "'abc'", "'abc   '" ], 'abc|abc' ],
	[ 'varchar(9)', 'varchar(3)', ["'abc'"], 'abc' ],
	[ 'text', 'name', ["'abc'"], 'abc' ],
	[ 'timestamp(6)', 'timestamp(0)', ["'2024-01-01 00:00:59.5'"], '2024-01-01 00:01:00' ],
	[ 'timestamptz', 'timestamptz(2)', ["'2024-01-01 00:00:00.126+00'"], '2024-01-01 00:00:00.13+00' ],
	[ 'timestamp', 'date', ["'2024-01-01 23:00'"], '2024-01-01' ],
	[ 'date', 'timestamp', [ "'2024-01-01'", "'infinity'" ], '2024-01-01 00:00:00|infinity' ],
	[ 'interval', 'time', ["'25:00'"], '01:00:00' ],
	[ 'int4', 'text', ['-7'], '-7' ],
	[ 'int4', 'varchar(3)', ['-71'], '-71' ],
	[ 'bool', 'text', ['true'], 'true' ],
	[ 'uuid', 'text', ["'00000000-0000-0000-0000-00000000000A'"], '00000000-0000-0000-0000-00000000000a' ],
	[ 'mood', 'text', [ "'ok'", 'NULL' ], 'ok|null' ],
	[ 'mood', 'varchar(3)', ["'sad'"], 'sad' ],
	[ 'text', 'mood', [ "'ok'", 'NULL' ], 'ok|null' ],
	[ 'json', 'jsonb', [q('{"a":  1}')], '{"a": 1}' ],
	[ 'percent', 'numeric', ['99.5'], '99.5' ],
	[ 'numeric', 'percent', [ '99.5', 'NULL' ], '99.5|null' ],
	[ 'int4', 'percent', ['99'], '99' ],
	[ 'text', 'required', ["'x'"], 'x' ],
	[ 'int4[]', 'int8[]', [ "'[2:3]={1,NULL}'", "'{}'" ], '[2:3]={1,NULL}|{}' ],
	[ 'numeric[]', 'numeric(4,1)[]', ["'{1.25,NaN}'"], '{1.3,NaN}' ],
	[ 'varchar[]', 'text[]', ["'{a,NULL}'"], '{a,NULL}' ],
	[ 'inet', 'cidr', ["'10.0.0.0/8'"], '10.0.0.0/8' ],
	[ 'old_pair', 'text', ["'(1,x)'"], '(1,x)' ]);
foreach (@assignable)
{
	my ($there, $here, $values, $expected) = @$_;
	my $name = pair($there, $here, @$values);
	my $n = @$values;
	is(pull($name, "$there to $here"), "ok|$n|$n|0|0|0|0", "$there to $here");
	is(all_of($name), $expected, "$there to $here: as by assignment");
	my $before = query("SELECT array_agg(xmin || ctid::text) FROM $name");
	is(pull($name, "$there to $here"), "ok|$n|0|0|0|$n|0", "$there to $here: nothing to do");
	is(query("SELECT array_agg(xmin || ctid::text) FROM $name"), $before, 'and nothing was written');
}

# Values that cannot be assigned: the row is left out, and quarantine tells
# which column of which table
my @unfit = (
	[ 'text', 'varchar(3)', "'abcd'", qr/too long for type character varying\(3\)/ ],
	[ 'varchar(9)', 'varchar(3)', "'abcd'", qr/too long for type character varying\(3\)/ ],
	[ 'text', 'mood', "'merry'", qr/invalid input value for enum mood: "merry"/ ],
	[ 'numeric', 'numeric(4,2)', '100', qr/numeric field overflow/ ],
	[ 'int8', 'int2', '70000', qr/smallint out of range/ ],
	[ 'numeric', 'percent', '101', qr/violates check constraint "percent_check"/ ],
	[ 'text', 'required', 'NULL', qr/domain required does not allow null values/ ],
	[ 'bit(4)', 'bit(3)', "B'1111'", qr/bit string length 4 does not match type bit\(3\)/ ]);
foreach (@unfit)
{
	my ($there, $here, $value, $expected) = @$_;
	my $name = pair($there, $here, $value);
	my $done = pull($name, "$there to $here");
	like($done, qr/^ok\|1\|0\|0\|0\|0\|1/, "$there to $here: $value does not fit");
	my $said = query("SELECT reason || ': ' || message FROM synchronize_quarantine");
	like($said, $expected, '... and quarantine says why');
	like($said, qr/^error: .*column "v" of remote table public\.$name, server "hq"/s, '... and where');
	is(query("SELECT count(*) FROM $name"), '0', '... and nothing was written');
	$master->safe_psql('postgres', "DELETE FROM $name");
	like(pull($name, "$there to $here"), qr/^ok\|0/, '... and it works when the row is gone');
}

# What does not fit together is reported before anything is written, all at
# once and for both sides.
$master->safe_psql('postgres', <<'EOC');
CREATE SCHEMA closed;
CREATE TABLE closed.closed (id int PRIMARY KEY);
CREATE TABLE tax (id int PRIMARY KEY, code text UNIQUE, rate text, gone int, secret int, moved int);
INSERT INTO tax VALUES (1, 'A', '7', 1, 1, 1);
CREATE TABLE item (id int PRIMARY KEY, code text UNIQUE, v date, w int, u inet[], g jsonb);
INSERT INTO item VALUES (1, 'A');
EOC
$till->safe_psql('postgres', <<'EOC');
CREATE TABLE closed (id int PRIMARY KEY);
CREATE TABLE tax (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE, rate int,
	secret int, moved int);
CREATE TABLE nowhere (code text PRIMARY KEY);
CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE,
	v int, w date, u int, g int[], tax int REFERENCES tax, nowhere text REFERENCES nowhere, closed int REFERENCES closed,
	dropped int, renamed int, missing int);
SELECT FROM possync_add_model('item', server => 'hq');
SELECT possync_set_model('closed', remote => 'closed.closed');
ALTER TABLE item DROP dropped;
ALTER TABLE item RENAME renamed TO afresh;
ALTER TABLE item ADD needed int NOT NULL;
EOC
my $mismatch = pull('item', 'mismatches');
like($mismatch, qr/^failed\|.*do not fit together/, 'what does not fit is an error');
like($mismatch, qr/column "dropped" of table item does not exist any more/, '... a dropped column');
like($mismatch, qr/column "renamed" of table item does not exist any more/, '... a renamed column');
like($mismatch, qr/column "needed" of table item must not be null/, '... a required column');
$till->safe_psql('postgres', <<'EOC');
ALTER TABLE item DROP needed, DROP afresh;
DELETE FROM synchronize_field WHERE name IN ('dropped', 'renamed');
EOC
$master->safe_psql('postgres', <<'EOC');
ALTER TABLE tax DROP gone;
REVOKE pg_read_all_data FROM clerk;
GRANT SELECT (id, code, rate, moved) ON tax TO clerk;
GRANT SELECT ON item TO clerk;
ALTER TABLE tax RENAME moved TO elsewhere;
EOC
$mismatch = pull('item', 'mismatches');
like($mismatch, qr/^failed\|.*do not fit together/, 'so are the mismatches of the other side');
like($mismatch, qr/$_/, "... $_")
  for 'column "v" of remote table public.item has type date, which cannot be assigned to type integer \(field "v" of item\)',
  'column "w" of remote table public.item has type integer, which cannot be assigned to type date',
  'column "u" of remote table public.item has type inet\[\], which cannot be assigned to type integer',
  'column "g" of remote table public.item has type jsonb, which cannot be assigned to type integer\[\]',
  'column "missing" of remote table public.item does not exist',
  'remote table public.nowhere does not exist on server "hq"',
  'permission denied for schema of remote table closed.closed',
  'column "rate" of remote table public.tax has type text, which cannot be assigned to type integer',
  'permission denied for column "secret" of remote table public.tax',
  'column "moved" of remote table public.tax does not exist';
is(query('SELECT (SELECT count(*) FROM item), (SELECT count(*) FROM tax), (SELECT count(*) FROM synchronize_translation WHERE model IN (SELECT id FROM synchronize_model WHERE name IN ($$item$$, $$tax$$)))'),
	'0|0|0', 'nothing was written');
$master->safe_psql('postgres', 'GRANT pg_read_all_data TO clerk');

# Everything in another order and under other names; extra columns; fixed values
$master->safe_psql('postgres', <<'EOC');
CREATE SCHEMA "Head Office";
CREATE TABLE "Head Office"."Good s" (extra jsonb NOT NULL DEFAULT '{}', "Na""me" text, "Id" bigserial PRIMARY KEY,
	price numeric, local_note text DEFAULT 'theirs');
ALTER TABLE "Head Office"."Good s" ADD dropped int;
ALTER TABLE "Head Office"."Good s" DROP dropped;
INSERT INTO "Head Office"."Good s" ("Na""me", price) SELECT 'n' || i, i FROM generate_series(1, 5) i;
EOC
$till->safe_psql('postgres', <<'EOC');
CREATE TABLE goods (dropped int, price numeric CONSTRAINT affordable CHECK (price < 100),
	twice numeric GENERATED ALWAYS AS (price * 2) STORED, "select" text NOT NULL UNIQUE,
	origin text NOT NULL, local_note text DEFAULT 'mine', stamp text NOT NULL DEFAULT 'made here',
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
ALTER TABLE goods DROP dropped;
INSERT INTO goods (price, "select", origin, local_note) VALUES (99, 'n3', 'here', 'keep me');
SELECT FROM possync_add_model('goods', server => 'hq', remote => '"Head Office"."Good s"');
SELECT possync_set_field('goods', 'id', remote => 'Id');
SELECT possync_set_field('goods', 'select', remote => 'Na"me');
SELECT possync_set_field('goods', 'stamp', copy => false);
SELECT possync_set_field('goods', 'local_note', copy => false);
SELECT possync_set_field('goods', 'origin', copy => false);
EOC
like(pull('goods', 'required'), qr/failed\|.*column "origin" of table goods must not be null/s,
	'a required column nobody supplies');
is(query('SELECT count(*) FROM goods'), '1', '... is found before anything is written');
$till->safe_psql('postgres', "SELECT possync_set_field('goods', 'origin', fixed => 'head office')");
is(pull('goods', 'goods'), 'ok|5|4|1|1|0|0', 'other orders and names');
my $goods = 'SELECT "select", price, twice, origin, local_note, stamp FROM goods ORDER BY 1';
is(query($goods), <<'EOC' =~ s/\n\z//r, 'each value is in its column');
n1|1|2|head office|mine|made here
n2|2|4|head office|mine|made here
n3|3|6|head office|keep me|made here
n4|4|8|head office|mine|made here
n5|5|10|head office|mine|made here
EOC
is(pull('goods', 'goods'), 'ok|5|0|0|0|5|0', 'nothing to do');
$till->safe_psql('postgres', q(UPDATE goods SET local_note = 'noted', stamp = 's'));
is(pull('goods', 'goods'), 'ok|5|0|0|0|5|0', 'what is not copied is nobody else\'s business');
$till->safe_psql('postgres', q(UPDATE goods SET origin = 'mine' WHERE "select" = 'n1'; UPDATE goods SET price = 0 WHERE "select" = 'n2'));
is(pull('goods', 'goods'), 'ok|5|0|0|2|3|0', 'a fixed value and a copied one are set again');
is(query('SELECT DISTINCT local_note, stamp, origin FROM goods'), 'noted|s|head office', 'what is not copied stays');

# What a check refuses
$master->safe_psql('postgres', q(UPDATE "Head Office"."Good s" SET price = 100 WHERE "Id" = 1));
like(query("SELECT concat_ws('|', status, rows_updated, rows_unchanged, rows_left_out) FROM possync_pull('goods')"),
	qr/^ok\|0\|4\|1$/m, 'a check is heard');
like(query('SELECT message FROM synchronize_quarantine'), qr/affordable/, '... and quarantine says so');
is(query('SELECT sum(price) FROM goods'), '15', '... and nothing is halved');
$master->safe_psql('postgres', q(UPDATE "Head Office"."Good s" SET price = 1 WHERE "Id" = 1));
is(pull('goods', 'goods'), 'ok|5|0|0|0|5|0', '... and all is well again');

done_testing();
