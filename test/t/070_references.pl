# Rows that refer to each other: trees within a table, cycles over several, keys
# of every kind and other types on the two sides.  Each pull comes after a dry
# run, which must touch nothing and promise the same counts.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Pair;
use Test::More;

my ($master, $till) = pair();


# A tree recognised by (parent, name), several levels deep, half of it here
there(<<'EOC');
CREATE TABLE cat (id serial PRIMARY KEY, parent int REFERENCES cat, name text NOT NULL, note text);
INSERT INTO cat (id, parent, name) SELECT i, NULLIF(i / 2, 0), 'n' || i % 2 FROM generate_series(1, 127) i;
SELECT setval('cat_id_seq', 127);
EOC
here(<<'EOC');
CREATE TABLE cat (id int GENERATED ALWAYS AS IDENTITY (START 5000 INCREMENT -3 MINVALUE 1 MAXVALUE 9999) PRIMARY KEY,
	parent int REFERENCES cat, name text NOT NULL, note text, UNIQUE (parent, name));
INSERT INTO cat (id, parent, name) OVERRIDING SYSTEM VALUE
SELECT 9000 - i, CASE WHEN i > 1 THEN 9000 - i / 2 END, 'n' || i % 2 FROM generate_series(1, 31) i;
INSERT INTO cat (parent, name) VALUES (8999, 'mine'), (NULL, 'mine');
SELECT FROM possync_add_model('cat', server => 'hq');
SELECT possync_set_field('cat', 'name', match => true), possync_set_field('cat', 'parent', match => true);
EOC
my $paths = <<'EOC';
WITH RECURSIVE p AS (SELECT id, name AS path, note FROM cat WHERE parent IS NULL AND name <> 'mine'
	UNION ALL SELECT c.id, path || '/' || name, c.note FROM p JOIN cat c ON c.parent = p.id AND name <> 'mine')
SELECT path, note FROM p ORDER BY path COLLATE "C"
EOC
pull('cat', 'ok|127|96|31|0|31|0', 'a tree, half of which is here');
is_same($master, $till, $paths, 'the same paths');
is(here('SELECT count(*) FROM cat'), '129', 'and nothing else');
quiet('cat', 'cat');

# Branches move, codes change hands
there("UPDATE cat SET parent = 3 WHERE id = 4; UPDATE cat SET name = 'moved' WHERE id = 4; UPDATE cat SET note = 'x' WHERE id > 120");
pull('cat', 'ok|127|0|0|8|119|0', 'a branch moves');
is_same($master, $till, $paths, 'the same paths');
there("INSERT INTO cat (id, parent, name) VALUES (200, 2, 'n0'), (201, 200, 'n0'), (202, 201, 'n0'); UPDATE cat SET parent = 202 WHERE id = 7");
pull('cat', 'ok|130|3|0|1|126|0', 'under new rows');
is_same($master, $till, $paths, 'the same paths');
there("UPDATE cat SET name = 'old' WHERE id = 2; INSERT INTO cat (id, parent, name) VALUES (203, 1, 'n0')");
pull('cat', 'ok|131|1|0|1|129|0', 'a name is given up and taken in one run');
is_same($master, $till, $paths, 'the same paths');
quiet('cat', 'cat');

# What went away here
here('DELETE FROM cat c WHERE NOT EXISTS (SELECT FROM cat d WHERE d.parent = c.id)');
pull('cat', qr/^ok\|131\|\d\d\|0\|0\|\d+\|0$/, 'leaves were deleted');
is_same($master, $till, $paths, 'the same paths');
here('TRUNCATE cat');
pull('cat', 'ok|131|131|0|0|0|0', 'the table was truncated');
is_same($master, $till, $paths, 'the same paths');
quiet('cat', 'cat');

# Two candidates deep in the tree take their branch with them, no more
there("CREATE TABLE dup (id serial PRIMARY KEY, parent int REFERENCES dup, name text NOT NULL); INSERT INTO dup SELECT i, NULLIF(i / 2, 0), 'd' || i FROM generate_series(1, 15) i");
here("CREATE TABLE dup (id int GENERATED ALWAYS AS IDENTITY (START 300) PRIMARY KEY, parent int REFERENCES dup, name text NOT NULL);"
	. "INSERT INTO dup (name) VALUES ('d1'); INSERT INTO dup (parent, name) VALUES (300, 'd2'), (300, 'd2'), (300, 'd3');"
	. "SELECT FROM possync_add_model('dup', server => 'hq'); SELECT possync_set_field('dup', 'name', match => true), possync_set_field('dup', 'parent', match => true)");
pull('dup', 'ok|15|6|2|0|2|7', 'two candidates in a tree');
is(here('SELECT count(*) FILTER (WHERE reason = $$ambiguous$$), count(*) FILTER (WHERE reason = $$dependency$$) FROM synchronize_quarantine'), '1|6', 'the branch waits');
my $asked = here("SELECT string_agg(xmin || ctid::text, ',') FROM synchronize_quarantine");
is(here("SELECT concat_ws('|', status, rows_left_out) FROM possync_pull('dup')"), 'ok|7', 'and waits on');
is(here("SELECT string_agg(xmin || ctid::text, ',') FROM synchronize_quarantine"), $asked, 'and is not written again');
here('DELETE FROM dup WHERE id = 302');
pull('dup', 'ok|15|6|1|0|9|0', 'one candidate less');
is(here('SELECT count(*) FROM synchronize_quarantine'), '0', 'the branch comes in by itself');

# Cycles over two and three tables: nullable, deferrable, and required at once
sub cycle
{
	my ($prefix, $n, $column, $constraint) = @_;
	my (@create, @alter, @fill);
	foreach my $i (1 .. $n)
	{
		push @create, "CREATE TABLE $prefix$i (id %s PRIMARY KEY, code text NOT NULL UNIQUE, next int $column, note text);";
		push @alter, sprintf 'ALTER TABLE %s%d ADD FOREIGN KEY (next) REFERENCES %s%d %s;', $prefix, $i, $prefix, $i % $n + 1, $constraint;
		push @fill, "INSERT INTO $prefix$i (id, code, next) SELECT i, 'c' || i, i FROM generate_series(1, 50) i;";
	}
	there(join('', map { sprintf $_, 'serial' } @create) . join '', @fill, @alter);
	here(join('', map { sprintf $_, 'int GENERATED BY DEFAULT AS IDENTITY (START 1000)' } @create)
		  . join('', @alter) . "SELECT FROM possync_add_model('${prefix}1', server => 'hq');");
	return;
}
sub round_trip
{
	my ($prefix, $n) = @_;
	my $from = "${prefix}1 t1" . join '', map { sprintf ' LEFT JOIN %s%d t%d ON t%d.id = t%d.next', $prefix, $_, $_, $_, $_ - 1 } 2 .. $n;
	return 'SELECT ' . join(', ', map { "t$_.code, t$_.note" } 1 .. $n) . " FROM $from ORDER BY t1.code";
}
foreach ([ 'two', 2, '', '' ], [ 'three', 3, '', '' ], [ 'deferred', 2, 'NOT NULL', 'DEFERRABLE INITIALLY DEFERRED' ],
	[ 'strict', 2, 'NOT NULL', '' ], [ 'hard', 3, 'NOT NULL', '' ])
{
	my ($name, $n, @how) = @$_;
	cycle($name, $n, @how);
	my ($all, $more) = (50 * $n, 50 * $n + $n);
	pull("${name}1", "ok|$all|$all|0|0|0|0", "$name: a cycle over $n tables");
	is_same($master, $till, round_trip($name, $n), "$name: the same");
	quiet("${name}1", $name);
	there("UPDATE ${name}1 SET next = 7 WHERE id = 3; UPDATE ${name}2 SET note = 'x' WHERE id < 5;"
		  . 'BEGIN; ' . join('', map { "ALTER TABLE $name$_ DISABLE TRIGGER ALL;" } 1 .. $n)
		  . join('', map { "INSERT INTO $name$_ (id, code, next) VALUES (99, 'new', 99);" } 1 .. $n)
		  . join('', map { "ALTER TABLE $name$_ ENABLE TRIGGER ALL;" } 1 .. $n) . 'COMMIT');
	pull("${name}1", "ok|$more|$n|0|5|" . ($all - 5) . '|0', "$name: changes and new rows");
	is_same($master, $till, round_trip($name, $n), "$name: the same");
	here('TRUNCATE ' . join ',', map { "$name$_" } 1 .. $n);
	pull("${name}1", "ok|$more|$more|0|0|0|0", "$name: truncated here");
	is_same($master, $till, round_trip($name, $n), "$name: the same");

	# the other half of a copy, matched by code
	here('TRUNCATE synchronize_translation, ' . join(',', map { "$name$_" } 1 .. $n) . '; BEGIN; '
		  . join('', map { "ALTER TABLE $name$_ DISABLE TRIGGER ALL; INSERT INTO $name$_ (code, next) SELECT 'c' || i, NULL FROM generate_series(1, 0) i;"
			  . "INSERT INTO $name$_ (id, code, next) SELECT 500 + i, 'c' || i, 500 + i FROM generate_series(1, 20) i; ALTER TABLE $name$_ ENABLE TRIGGER ALL;" } 1 .. $n)
		  . 'COMMIT; DELETE FROM synchronize_position');
	my ($made, $matched) = (31 * $n, 20 * $n);
	pull("${name}1", "ok|$more|$made|$matched|5|" . ($matched - 5) . '|0', "$name: half of it here");
	is_same($master, $till, round_trip($name, $n), "$name: the same");
	quiet("${name}1", $name);
}

# Keys of every kind, and what refers to them
my %keys = (
	text => [ 'text', q('k' || i) ],
	uuid => [ 'uuid', q(md5(i::text)::uuid) ],
	date => [ 'date', q(date '2024-01-01' + i) ],
	numeric => [ 'numeric(10,2)', 'i + 0.50' ],
	citext => [ 'citext', q('Key ' || i) ],
	timestamptz => [ 'timestamptz', q(timestamptz '2024-01-01 00:00:00.25+00' + i * interval '1 hour') ],
	int8 => [ 'int8', '9223372036854775800 + i' ],
	bytea => [ 'bytea', q(decode(lpad(i::text, 4, '0'), 'hex')) ],
	enum => [ 'mood', q((enum_range(NULL::mood))[i]) ],
	inet => [ 'inet', q(inet '10.0.0.0' + i) ]);
$_->safe_psql('postgres', q(CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd'))) for $master, $till;
foreach my $kind (sort keys %keys)
{
	my ($type, $value) = @{ $keys{$kind} };
	my $tables = "CREATE TABLE k_$kind (k $type PRIMARY KEY, name text); CREATE TABLE c_$kind (id %s PRIMARY KEY, code text NOT NULL UNIQUE, k $type REFERENCES k_$kind);";
	there(sprintf($tables, 'serial') . "INSERT INTO k_$kind SELECT $value, 'n' || i FROM generate_series(1, 4) i;"
		  . "INSERT INTO c_$kind (code, k) SELECT 'c' || i, $value FROM generate_series(1, 4) i");
	here(sprintf($tables, 'int GENERATED ALWAYS AS IDENTITY (START 40)') . "INSERT INTO k_$kind SELECT $value, 'mine' FROM generate_series(1, 2) i;"
		  . "SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kathmandu'; SELECT FROM possync_add_model('c_$kind', server => 'hq')");
	here("ALTER DATABASE postgres SET datestyle = 'SQL, DMY'; ALTER DATABASE postgres SET timezone = 'Asia/Kathmandu'");
	pull("c_$kind", 'ok|8|6|2|2|0|0', "$kind key");
	here("ALTER DATABASE postgres RESET datestyle; ALTER DATABASE postgres RESET timezone");
	is_same($master, $till, "SELECT code, k::text, name FROM c_$kind JOIN k_$kind USING (k) ORDER BY 1", "$kind key: the same");
	quiet("c_$kind", "$kind key");
}

# Integers on one side, something else on the other
there(q(CREATE TABLE x1 (id serial PRIMARY KEY, code text UNIQUE); CREATE TABLE x2 (id serial PRIMARY KEY, code text UNIQUE, x1 int REFERENCES x1);
	CREATE TABLE y1 (id uuid PRIMARY KEY, code text UNIQUE); CREATE TABLE y2 (id text PRIMARY KEY, code text UNIQUE, y1 uuid REFERENCES y1);
	INSERT INTO x1 (code) VALUES ('a'), ('b'); INSERT INTO x2 (code, x1) VALUES ('ca', 1), ('cb', 2), ('c', NULL);
	INSERT INTO y1 VALUES (md5('a')::uuid, 'a'), (md5('b')::uuid, 'b'); INSERT INTO y2 VALUES ('1', 'ca', md5('a')::uuid), ('x', 'cb', md5('b')::uuid)));
here(q(CREATE TABLE x1 (id uuid DEFAULT gen_random_uuid() PRIMARY KEY, code text NOT NULL UNIQUE); CREATE TABLE x2 (id text DEFAULT 'L' || gen_random_uuid() PRIMARY KEY, code text NOT NULL UNIQUE, x1 uuid REFERENCES x1);
	CREATE TABLE y1 (id bigserial PRIMARY KEY, code text NOT NULL UNIQUE); CREATE TABLE y2 (id smallserial PRIMARY KEY, code text NOT NULL UNIQUE, y1 bigint REFERENCES y1);
	INSERT INTO x1 (code) VALUES ('b'); INSERT INTO y1 (id, code) VALUES (77, 'b');
	SELECT FROM possync_add_model('x2', server => 'hq'); SELECT FROM possync_add_model('y2', server => 'hq');
	SELECT possync_set_field(m, 'id', copy => false, match => false), possync_set_field(m, 'code', match => true) FROM unnest('{x1,x2,y1,y2}'::text[]) m));
pull('x2', 'ok|5|4|1|0|1|0', 'integers there, uuid and text here');
is_same($master, $till, 'SELECT x2.code, x1.code FROM x2 LEFT JOIN x1 ON x1.id = x1 ORDER BY 1', 'the same');
quiet('x2', 'x2');
pull('y2', 'ok|4|3|1|0|1|0', 'uuid and text there, integers here');
is_same($master, $till, 'SELECT y2.code, y1.code FROM y2 LEFT JOIN y1 ON y1.id = y1 ORDER BY 1', 'the same');
quiet('y2', 'y2');

# Composite keys, and a foreign key to a constraint that is not the key
there(q(CREATE TABLE shop (id serial PRIMARY KEY, code text NOT NULL UNIQUE);
	CREATE TABLE shelf (shop int REFERENCES shop, no int, label text, PRIMARY KEY (shop, no));
	CREATE TABLE box (shop int, no int, pos "char", name text, code text REFERENCES shop (code), PRIMARY KEY (shop, no, pos), FOREIGN KEY (shop, no) REFERENCES shelf);
	INSERT INTO shop (code) VALUES ('s"1'), ('s,2'), ('s\3'); INSERT INTO shelf SELECT s, n, format('{"%s",%s}', s, n) FROM generate_series(1, 3) s, generate_series(1, 3) n;
	INSERT INTO box SELECT shop, no, 'a', label, code FROM shelf JOIN shop ON id = shop));
here(q(CREATE TABLE shop (id int GENERATED ALWAYS AS IDENTITY (START 10) PRIMARY KEY, code text NOT NULL UNIQUE);
	CREATE TABLE shelf (shop int REFERENCES shop, no int, label text, PRIMARY KEY (shop, no));
	CREATE TABLE box (shop int, no int, pos "char", name text, code text REFERENCES shop (code), PRIMARY KEY (shop, no, pos), FOREIGN KEY (shop, no) REFERENCES shelf);
	INSERT INTO shop (code) VALUES ('s\3'); INSERT INTO shelf VALUES (10, 2, 'mine'); INSERT INTO box VALUES (10, 2, 'a', 'mine', 's\3');
	SELECT FROM possync_add_model('box', server => 'hq')));
pull('box', 'ok|21|18|3|2|1|0', 'composite keys');
is_same($master, $till, 'SELECT s.code, no, pos, name, label, b.code FROM box b JOIN shelf USING (shop, no) JOIN shop s ON s.id = b.shop ORDER BY 1, 2', 'the same');
quiet('box', 'box');
there("UPDATE box SET shop = 2, code = 's,2' WHERE shop = 1 AND no = 3 AND false; UPDATE shelf SET label = 'new' WHERE (shop, no) = (2, 2); DELETE FROM box WHERE (shop, no) = (1, 1)");
pull('box', 'ok|20|0|0|1|19|0', 'a change under a composite key');

done_testing();
