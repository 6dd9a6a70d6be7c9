# What was found to delete too much, or to stop a pull: cascades, deferred constraints,
# triggers, another master, nulls in keys, policies.

use strict;
use warnings FATAL => 'all';
use Possync;
use Possync::Pair;
use Test::More;
my ($master, $till) = pair();
$_->safe_psql('postgres', <<'EOC') for $master, $till;
CREATE TABLE category (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE prod (id integer PRIMARY KEY, code text, category integer REFERENCES category ON DELETE CASCADE, extra text);
CREATE TABLE dup (id integer PRIMARY KEY, n integer);
CREATE TABLE casc (id integer PRIMARY KEY, n integer);
CREATE TABLE trg (id integer PRIMARY KEY, n integer);
CREATE TABLE other (id integer PRIMARY KEY, n integer);
CREATE TABLE kcol (id integer PRIMARY KEY, k integer);
CREATE TABLE rls (id integer PRIMARY KEY, n integer);
EOC
there("INSERT INTO category SELECT i, 'C' || i FROM generate_series(1, 30) i; INSERT INTO prod SELECT i, 'P' || i, 1 + i % 30 FROM generate_series(1, 300) i");
there("INSERT INTO $_ SELECT i, i FROM generate_series(1, 300) i") for qw(dup casc trg other kcol rls);
there("CREATE TABLE nulls (a integer, b text, n integer, UNIQUE (a, b)); INSERT INTO nulls SELECT i, 'b', i FROM generate_series(1, 2000) i; ANALYZE");
here("CREATE TABLE nulls (a integer, b text, n integer, PRIMARY KEY (a, b))");
here("ALTER DATABASE postgres SET possync.compare_interval = 0");
here("SELECT * FROM possync_add_model('$_', server => 'hq'); SELECT possync_set_model(name, on_delete => 'delete') FROM synchronize_model") for qw(prod dup casc trg other kcol rls nulls);
my $counts = "concat_ws('|', status, rows_read, rows_created, rows_updated, rows_deleted, rows_left_out, error)";
sub p { my ($m, $set) = @_; my ($s, $o, $e) = $till->psql('postgres', ($set // '') . "SELECT $counts FROM possync_pull('$m')"); return $o }
p($_) for qw(prod dup casc trg other kcol rls nulls);

here("CREATE TABLE audit (id integer); CREATE FUNCTION au() RETURNS trigger LANGUAGE plpgsql AS \$\$BEGIN INSERT INTO audit VALUES (OLD.id); RETURN OLD; END\$\$; CREATE TRIGGER au AFTER DELETE ON prod FOR EACH ROW EXECUTE FUNCTION au(); CREATE TABLE stock (prod integer REFERENCES prod ON DELETE CASCADE, n integer); INSERT INTO stock VALUES (29, 5)");
there("UPDATE prod SET category = 1 WHERE category = 30; DELETE FROM category WHERE id = 30");
p('prod');
is(here('SELECT count(*) FROM audit'), 0, 'nothing deleted that is still at the master');
is(here('SELECT count(*) FROM prod'), there('SELECT count(*) FROM prod'), 'count');
is(here('SELECT count(*) FROM stock'), 1, 'stock');
p('prod'); is(here('SELECT count(*) FROM prod'), there('SELECT count(*) FROM prod'), 'count later');

here("CREATE TABLE l1 (d integer CONSTRAINT fk_dup REFERENCES dup DEFERRABLE INITIALLY DEFERRED); CREATE TABLE l2 (d integer CONSTRAINT fk_dup REFERENCES dup)");
there('DELETE FROM dup WHERE id = 1'); like(p('dup'), qr/^ok\|.*\|1\|0$/, 'two constraints of one name');

here("CREATE TABLE mid (id integer PRIMARY KEY REFERENCES casc ON DELETE CASCADE); CREATE TABLE leaf (m integer REFERENCES mid DEFERRABLE INITIALLY DEFERRED); INSERT INTO mid VALUES (1); INSERT INTO leaf VALUES (1)");
there('DELETE FROM casc WHERE id IN (1, 2)'); p('casc');
is(here('SELECT count(*) FROM casc WHERE id <= 2'), 1, 'deferred behind a cascade does not stop the rest');
here("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS \$\$BEGIN IF OLD.id = 1 THEN RAISE 'never'; END IF; RETURN NULL; END\$\$; CREATE CONSTRAINT TRIGGER no AFTER DELETE ON trg DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()");
there('DELETE FROM trg WHERE id IN (1, 2)'); p('trg');
is(here('SELECT count(*) FROM trg WHERE id <= 2'), 1, 'G3b deferred constraint trigger does not stop the rest');

my ($s, $o, $e) = $till->psql('postgres', "SELECT * FROM possync_control('kcol')"); is($e, '', 'column k, control');
($s, $o, $e) = $till->psql('postgres', "SELECT * FROM possync_compare('kcol', 'push')"); is($e, '', 'column k, compare');

here("CREATE TABLE okk (o integer REFERENCES other); INSERT INTO okk VALUES (1)");
there('DELETE FROM other WHERE id = 1'); p('other');
is(here("SELECT there FROM possync_control('other') WHERE measure = 'rows'"), 299, 'control counts what is there');
# other master has the kept row
$master->safe_psql('postgres', 'CREATE DATABASE second');
$master->safe_psql('second', 'CREATE TABLE other (id integer PRIMARY KEY, n integer); INSERT INTO other SELECT i, i FROM generate_series(1, 300) i');
here("DROP TABLE okk; ALTER SERVER hq OPTIONS (SET dbname 'second')");
here("CREATE TRIGGER au AFTER DELETE ON other FOR EACH ROW EXECUTE FUNCTION au(); TRUNCATE audit");
p('other'); is(here('SELECT count(*) FROM audit'), 0, 'kept row that another master has is not deleted');
is(here('SELECT count(*) FROM other'), 300, 'count');
here("ALTER SERVER hq OPTIONS (SET dbname 'postgres')");

there("INSERT INTO nulls VALUES (1, NULL, 5)"); like(p('nulls'), qr/^ok/, 'null in key, pull');
($s, $o, $e) = $till->psql('postgres', "SELECT count(*) FROM possync_compare('nulls')"); is($e, '', 'null in key, compare');

here("CREATE ROLE spy; GRANT SELECT, INSERT, UPDATE, DELETE ON rls TO spy; CREATE TABLE pub (n integer); ALTER TABLE rls ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON rls USING (id > 150); GRANT USAGE ON FOREIGN SERVER hq TO spy; CREATE USER MAPPING FOR spy SERVER hq OPTIONS (user 'clerk', password 'secret')");
is(here("SET ROLE spy; SELECT count(*) FROM _possync_linked t JOIN synchronize_model m ON m.id = t.model WHERE m.name = 'rls' AND local_key <= 150"), 0, 'links of invisible rows');
there('DELETE FROM rls WHERE id = 3');
($s, $o, $e) = $till->psql('postgres', "SET ROLE spy; SELECT $counts FROM possync_pull('rls')");
is(here("SELECT count(*) FROM rls r WHERE NOT EXISTS (SELECT FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model AND m.name = 'rls' WHERE t.local_key = r.id)"), 0, 'invisible row is not unlinked');
# deferred set by user
there('DELETE FROM rls WHERE id = 4');
here("CREATE TABLE lr (r integer REFERENCES rls DEFERRABLE INITIALLY IMMEDIATE); INSERT INTO lr VALUES (4)");
($s, $o, $e) = $till->psql('postgres', "BEGIN; SET CONSTRAINTS ALL DEFERRED; SELECT $counts FROM possync_pull('rls'); COMMIT"); unlike($e, qr/ERROR/, 'constraints that somebody deferred do not fail at the commit');
done_testing();
