# Which local row is which remote one: every way in which that is decided, in
# every situation that makes it hard.  Each pull comes after a dry run, which
# must touch nothing and promise the same counts.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Pair;
use Test::More;

my ($master, $till) = pair();

there('CREATE TABLE a (id serial PRIMARY KEY, code text, kind int, note text);'
	  . "INSERT INTO a (code, kind, note) VALUES ('x', 1, 'there'), ('y', 1, 'there'), ('z', NULL, 'there')");
my $a = 'id int GENERATED ALWAYS AS IDENTITY (START 1000 INCREMENT 7) PRIMARY KEY, code text, kind int, note text';

# Makes a local table under another name, with rows x (note 'here') and others.
sub local_table
{
	my ($name, @options) = @_;
	there("CREATE TABLE $name (LIKE a INCLUDING ALL); INSERT INTO $name SELECT * FROM a");
	here("CREATE TABLE $name ($a); INSERT INTO $name (code, kind, note) VALUES ('x', 1, 'here'), ('mine', 1, 'here');"
		  . "SELECT FROM possync_add_model('$name', server => 'hq');"
		  . "SELECT possync_set_field('$name', 'code', match => true);"
		  . (@options ? "SELECT possync_set_model('$name', @options)" : ''));
	return;
}

sub content_of
{
	return here("SELECT string_agg(concat_ws(' ', code, kind, note), ', ' ORDER BY code, kind, note) FROM $_[0]");
}

# What may happen to what is unknown, and what to what matches
local_table('match_create');
pull('match_create', 'ok|3|2|1|1|0|0', 'match_create');
is(content_of('match_create'), 'mine 1 here, x 1 there, y 1 there, z there', 'one matched and updated, two made');
is(here('SELECT string_agg(id::text, $$,$$ ORDER BY id) FROM match_create'), '1000,1007,1014,1021', 'by the local sequence');
quiet('match_create', 'match_create');

local_table('keep', q(on_match => 'keep'));
pull('keep', 'ok|3|2|1|0|0|0', 'on_match keep');
is(content_of('keep'), 'mine 1 here, x 1 here, y 1 there, z there', 'what matched was left alone');

local_table('match_only', q(on_unknown => 'match'));
pull('match_only', 'ok|3|0|1|1|0|0', 'match only');
is(content_of('match_only'), 'mine 1 here, x 1 there', 'nothing was made');
here(q(INSERT INTO match_only (code, kind, note) VALUES ('y', 1, 'here')));
pull('match_only', 'ok|3|0|1|1|1|0', 'match only, a row came');

local_table('create_only', q(on_unknown => 'create'));
pull('create_only', 'ok|3|3|0|0|0|0', 'create only');
is(content_of('create_only'), 'mine 1 here, x 1 here, x 1 there, y 1 there, z there', 'nothing was matched');

local_table('ignored', q(on_unknown => 'ignore'));
pull('ignored', 'ok|0|0|0|0|0|0', 'ignore');

# All match fields together, null equals null
local_table('several');
here(q(SELECT possync_set_field('several', 'kind', match => true);
	INSERT INTO several (code, kind, note) VALUES ('z', NULL, 'here'), ('y', NULL, 'here'), (NULL, NULL, 'nothing at all')));
there(q(INSERT INTO several (code, kind, note) VALUES (NULL, 5, 'half'), ('z', 5, 'there'), (NULL, NULL, 'nothing there')));
pull('several', 'ok|6|3|3|3|0|0', 'match fields are compared together');
is(content_of('several'), 'mine 1 here, x 1 there, y 1 there, y here, z 5 there, z there, 5 half, nothing there',
	'null equals null and nothing else');
quiet('several', 'several');

# Two candidates: never guessed, nor what depends on it
sub parent_and_child
{
	my ($p, $c) = @_;
	there("CREATE TABLE $p (id serial PRIMARY KEY, code text, note text); CREATE TABLE $c (id serial PRIMARY KEY, code text UNIQUE, p int REFERENCES $p);"
		  . "INSERT INTO $p (code) VALUES ('x'), ('y'); INSERT INTO $c (code, p) VALUES ('cx', 1), ('cy', 2), ('c', NULL)");
	here("CREATE TABLE $p (id int GENERATED ALWAYS AS IDENTITY (START 50) PRIMARY KEY, code text, note text);"
		  . "CREATE TABLE $c (id int GENERATED ALWAYS AS IDENTITY (START 70) PRIMARY KEY, code text UNIQUE, p int REFERENCES $p);"
		  . "SELECT FROM possync_add_model('$c', server => 'hq'); SELECT possync_set_field('$p', 'code', match => true), possync_set_field('$c', 'code', match => true)");
	return;
}
parent_and_child(qw(pa ca));
here(q(INSERT INTO pa (code) VALUES ('x'), ('x')));
pull('ca', 'ok|5|3|0|0|0|2', 'two candidates');
is(quarantine(), 'ca 1 dependency, pa 1 ambiguous {50,51}', 'are asked about, and what depends on them waits');
quiet('ca', 'two candidates');
here('DELETE FROM pa WHERE id = 51');
pull('ca', qr/^ok\|\d+\|1\|1\|0\|/, 'one candidate less');
is(quarantine(), '', 'and all comes in by itself');
is(here('SELECT ca.code, pa.id, pa.code FROM ca LEFT JOIN pa ON pa.id = p ORDER BY 1'), "c||\ncx|50|x\ncy|52|y", 'in its place');

# Two remote rows match one local row
there(q(INSERT INTO pa (code) VALUES ('twin'), ('twin'); INSERT INTO ca (code, p) VALUES ('ct', 4)));
here(q(INSERT INTO pa (code) VALUES ('twin')));
pull('ca', 'ok|8|0|0|0|5|3', 'two remote rows for one here');
is(quarantine(), 'ca 4 dependency, pa 3 ambiguous {53}, pa 4 ambiguous {53}', 'are asked about');
there(q(DELETE FROM pa WHERE id = 3));
pull('ca', 'ok|7|1|1|0|6|0', 'one of them gone');
is(quarantine(), '', 'the other comes in');

# What matches is linked already
there(q(INSERT INTO pa (code) VALUES ('y')));
pull('ca', 'ok|8|0|0|0|7|1', 'a local row that is linked');
is(quarantine(), 'pa 5 linked', 'is not linked twice');
there(q(DELETE FROM pa WHERE code = 'y' AND id = 5));
pull('ca', qr/^ok\|7\|0\|0\|0\|7\|0/, 'the other one gone');
is(quarantine(), '', 'no longer');

# A dry run of a row whose parent is only to be made, but which matches itself
parent_and_child(qw(pb cb));
here(q(INSERT INTO cb (code) VALUES ('cx'), ('cy')));
pull('cb', 'ok|5|3|2|2|0|0', 'matched under a parent that is made');
is(here('SELECT cb.code, pb.code FROM cb LEFT JOIN pb ON pb.id = p ORDER BY 1'), "c|\ncx|x\ncy|y", 'all in place');
quiet('cb', 'cb');
there(q(INSERT INTO pb (code) VALUES ('new'); UPDATE cb SET p = 3 WHERE code = 'c'; UPDATE cb SET p = NULL WHERE code = 'cx'));
pull('cb', 'ok|6|1|0|2|3|0', 'a known row gets a new parent');

# The parent's row is not there
parent_and_child(qw(pc cc));
here(q(SELECT possync_set_model('pc', on_unknown => 'match'); INSERT INTO pc (code) VALUES ('y')));
pull('cc', 'ok|5|2|1|0|1|1', 'a parent that may not be made');
is(quarantine(), 'cc 1 dependency, pc 1 missing', 'its children wait');
here(q(INSERT INTO pc (code) VALUES ('x')));
pull('cc', 'ok|5|1|1|0|4|0', 'the parent is here');
is(quarantine(), '', 'and they come in');

# Match on a translated foreign key
there(q(CREATE TABLE pd (id serial PRIMARY KEY, code text UNIQUE); CREATE TABLE cd (id serial PRIMARY KEY, p int NOT NULL REFERENCES pd, name text NOT NULL, v int, UNIQUE (p, name));
	INSERT INTO pd (code) VALUES ('a'), ('b'); INSERT INTO cd (p, name, v) VALUES (1, 'n', 1), (2, 'n', 2), (2, 'm', 3)));
here(q(CREATE TABLE pd (id int GENERATED ALWAYS AS IDENTITY (START 50) PRIMARY KEY, code text NOT NULL UNIQUE);
	CREATE TABLE cd (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, p int NOT NULL REFERENCES pd, name text NOT NULL, v int, UNIQUE (p, name));
	INSERT INTO pd (code) VALUES ('b'), ('a'), ('mine'); INSERT INTO cd (p, name) VALUES (50, 'n'), (52, 'n'), (51, 'other');
	SELECT FROM possync_add_model('cd', server => 'hq')));
pull('cd', 'ok|5|2|3|1|2|0', 'matched by a foreign key and a name');
is(here('SELECT pd.code, name, v FROM cd JOIN pd ON pd.id = p ORDER BY 1, 2'), "a|n|1\na|other|\nb|m|3\nb|n|2\nmine|n|", 'each under its own parent');
quiet('cd', 'cd');

# Values of a unique column that go round
there(q(CREATE TABLE u (id serial PRIMARY KEY, code text NOT NULL UNIQUE, note text); INSERT INTO u (code, note) VALUES ('X', '1'), ('B', '2'), ('C', '3')));
here(q(CREATE TABLE u (id int GENERATED ALWAYS AS IDENTITY (START 50) PRIMARY KEY, code text NOT NULL UNIQUE, note text); SELECT FROM possync_add_model('u', server => 'hq')));
pull('u', 'ok|3|3|0|0|0|0', 'unique codes');
there(q(UPDATE u SET code = 'Y' WHERE id = 1; INSERT INTO u (code, note) VALUES ('X', '4')));
pull('u', 'ok|4|1|0|1|2|0', 'a row gives its code to a new one');
is_same($master, $till, 'SELECT code, note FROM u ORDER BY 2', 'as over there');
there(q(UPDATE u SET code = 'Z' WHERE id = 1; UPDATE u SET code = 'Y' WHERE id = 2; UPDATE u SET code = 'B' WHERE id = 3));
pull('u', 'ok|4|0|0|3|1|0', 'codes move on');
is_same($master, $till, 'SELECT code, note FROM u ORDER BY 2', 'as over there');
there(q(UPDATE u SET code = 'swap' WHERE id = 2; UPDATE u SET code = 'Y' WHERE id = 3; UPDATE u SET code = 'B' WHERE id = 2));
pull('u', 'ok|4|0|0|2|2|0', 'two rows swap their codes');
is_same($master, $till, 'SELECT code, note FROM u ORDER BY 2', 'as over there');
quiet('u', 'u');

# The same with numbers, within a parent, and with columns that may be null; the
# constraint of the last table leaves nothing to set aside
there(q(CREATE TABLE place (id serial PRIMARY KEY, code text UNIQUE, row int, no smallint, tag varchar(3), day date, UNIQUE (row, no) DEFERRABLE, UNIQUE (tag) DEFERRABLE);
	CREATE TABLE hard (id serial PRIMARY KEY, day date NOT NULL UNIQUE DEFERRABLE);
	INSERT INTO place (code, row, no, tag, day) SELECT 'p' || i, i % 2, i, 't' || i, date '2024-01-01' + i FROM generate_series(1, 8) i;
	INSERT INTO hard (day) SELECT date '2024-01-01' + i FROM generate_series(1, 3) i));
here(q(CREATE TABLE place (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text UNIQUE, row int NOT NULL, no smallint NOT NULL CHECK (no < 100), tag varchar(3) NOT NULL UNIQUE, day date UNIQUE, UNIQUE (row, no));
	CREATE TABLE hard (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, day date NOT NULL UNIQUE);
	SELECT FROM possync_add_model('place', server => 'hq'); SELECT possync_set_field('place', 'code', match => true);
	SELECT FROM possync_add_model('hard', server => 'hq')));
pull('place', 'ok|8|8|0|0|0|0', 'places');
pull('hard', 'ok|3|3|0|0|0|0', 'days');
there(q(BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE place SET no = no + 2, tag = 't' || id % 8 + 1, day = date '2024-01-01' + 9 - id; COMMIT));
pull('place', 'ok|8|0|0|8|0|0', 'all go round');
is_same($master, $till, 'SELECT code, row, no, tag, day FROM place ORDER BY 1', 'as over there');
quiet('place', 'place');
there(q(BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE hard SET day = day + 1; COMMIT));
pull('hard', 'ok|3|0|0|3|0|0', 'days that cannot be set aside');
there(q(UPDATE hard SET day = day + 10));
pull('hard', 'ok|3|0|0|3|0|0', 'days that need not be');

# Local rows that went away
here('DELETE FROM u WHERE note = $$2$$');
pull('u', 'ok|4|1|0|0|3|0', 'a local row was deleted');
is_same($master, $till, 'SELECT code, note FROM u ORDER BY 2', 'it is back');
here(q(CREATE TABLE again AS SELECT code, note FROM u ORDER BY code LIMIT 1; DELETE FROM u WHERE code IN (SELECT code FROM again);
	INSERT INTO u (code, note) SELECT * FROM again));
pull('u', 'ok|4|0|1|0|4|0', 'a local row was deleted and came again under another key');
quiet('u', 'u');
here('TRUNCATE u');
pull('u', 'ok|4|4|0|0|0|0', 'the table was truncated');
is_same($master, $till, 'SELECT code, note FROM u ORDER BY 2', 'all are back');
quiet('u', 'u');

# A natural key changes: it is another row
there(q(CREATE TABLE n (code text PRIMARY KEY, name text); CREATE TABLE nc (id serial PRIMARY KEY, code text UNIQUE, n text REFERENCES n ON UPDATE CASCADE);
	INSERT INTO n VALUES ('k1', 'one'), ('k2', 'two'); INSERT INTO nc (code, n) VALUES ('c1', 'k1')));
here(q(CREATE TABLE n (code text PRIMARY KEY, name text); CREATE TABLE nc (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text UNIQUE, n text REFERENCES n);
	INSERT INTO n VALUES ('k2', 'mine'); SELECT FROM possync_add_model('nc', server => 'hq'); SELECT possync_set_field('nc', 'code', match => true)));
pull('nc', 'ok|3|2|1|1|0|0', 'a natural key');
there(q(UPDATE n SET code = 'k9' WHERE code = 'k1'));
pull('nc', 'ok|3|1|0|1|1|0', 'a natural key changed');
is(here('SELECT n FROM nc'), 'k9', 'what refers to it follows');

there("UPDATE n SET name = 'renamed'");
like(here("EXPLAIN (ANALYZE, WAL, COSTS OFF) SELECT possync_pull('nc')"), qr/WAL:/, 'a real pull does touch the log');

# A parent that is read only when it changes was deleted here
there(q(CREATE TABLE pe (id serial PRIMARY KEY, code text NOT NULL UNIQUE, updated_at timestamptz NOT NULL);
	CREATE TABLE ce (id serial PRIMARY KEY, code text NOT NULL UNIQUE, p int REFERENCES pe);
	INSERT INTO pe (code, updated_at) SELECT 'p' || i, '2020-01-01' FROM generate_series(1, 3) i; INSERT INTO ce (code, p) VALUES ('c1', 1), ('c2', 2)));
here(q(CREATE TABLE pe (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE, updated_at timestamptz NOT NULL);
	CREATE TABLE ce (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE, p int REFERENCES pe ON DELETE SET NULL);
	SELECT FROM possync_add_model('ce', server => 'hq')));
pull('ce', 'ok|5|5|0|0|0|0', 'a parent with a change column');
here('DELETE FROM pe WHERE code = $$p1$$');
there(q(INSERT INTO ce (code, p) VALUES ('c3', 3), ('c4', 1)));
is(here(q(SELECT concat_ws('|', status, rows_read, rows_created, rows_updated, rows_left_out) FROM possync_pull('ce'))),
	'ok|7|3|1|0', 'what new rows refer to was deleted here, and is read again');
is_same($master, $till, 'SELECT ce.code, pe.code FROM ce LEFT JOIN pe ON pe.id = p ORDER BY 1', 'as over there');

done_testing();
