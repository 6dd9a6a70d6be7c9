# Rows that are deleted at the master: left alone, deactivated or deleted here, and
# kept where something still needs them.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Pair;
use Possync::Sales;
use Test::More;

my ($master, $till) = pair();

$_->safe_psql('postgres', <<'EOC') for $master, $till;
CREATE TABLE category (id serial PRIMARY KEY, name text NOT NULL UNIQUE, parent integer REFERENCES category);
CREATE TABLE product (id serial PRIMARY KEY, code text NOT NULL UNIQUE, category integer REFERENCES category,
	active boolean NOT NULL DEFAULT true, updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE barcode (product integer REFERENCES product ON DELETE CASCADE, code text, PRIMARY KEY (product, code));
CREATE INDEX ON product (updated_at);
EOC
there(<<'EOC');
INSERT INTO category (name, parent) SELECT 'C' || i, nullif(i / 3, 0) FROM generate_series(1, 30) i;
INSERT INTO product (code, category) SELECT 'P' || i, 1 + i % 30 FROM generate_series(1, 3000) i;
INSERT INTO barcode SELECT id, 'B' || id FROM product;
EOC
here(<<'EOC');
ALTER SEQUENCE product_id_seq RESTART 500000;
CREATE TABLE line (id serial PRIMARY KEY, product integer REFERENCES product);
CREATE TABLE later (id serial PRIMARY KEY, product integer REFERENCES product DEFERRABLE INITIALLY DEFERRED);
SELECT * FROM possync_add_model('barcode', server => 'hq');
ALTER DATABASE postgres SET possync.compare_interval = 0;
EOC

my $deletes = "concat_ws('|', status, rows_created, rows_updated, rows_deleted, rows_left_out, error)";

# Pulls, after a dry run that has to promise the same
sub gone
{
	my ($expected, $name, $settings) = @_;
	$settings = $settings ? "SET $settings;" : '';
	my ($s1, $promised) = $till->psql('postgres', "$settings SELECT $deletes FROM possync_pull('barcode', dry_run => true)");
	my ($s2, $done, $err) = $till->psql('postgres', "$settings SELECT $deletes FROM possync_pull('barcode')");
	is($done, $expected, $name) || diag($err);
	is($promised, $expected =~ s/^ok/dry run/r, "$name: as the dry run said") if $expected =~ /\|0$/;
	return $err;
}

sub same
{
	my ($name) = @_;
	is_same($master, $till, $_, $name)
	  for 'SELECT c.name, p.name FROM category c LEFT JOIN category p ON p.id = c.parent ORDER BY 1',
	  'SELECT p.code, c.name, active FROM product p LEFT JOIN category c ON c.id = p.category ORDER BY 1',
	  'SELECT p.code, b.code FROM barcode b JOIN product p ON p.id = b.product ORDER BY 1, 2';
	return;
}

gone('ok|6030|0|0|0', 'all is here');
gone('ok|0|0|0|0', 'and nothing is gone');
same('at first');

# Nothing is deleted unless somebody asks for it.
there("DELETE FROM product WHERE code = 'P1'");
gone('ok|0|0|0|0', 'ignored');
is(here("SELECT count(*) FROM product WHERE code = 'P1'"), 1, 'the product is still here');
here("SELECT possync_set_model(name, on_delete => 'delete') FROM synchronize_model");
gone('ok|0|0|2|0', 'deleted, once asked for');
same('after that');
is(here('SELECT count(*) FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model JOIN product p ON p.id <> t.local_key WHERE false'), 0, 'no trace');
is(here("SELECT count(*) FROM synchronize_translation"), here('SELECT (SELECT count(*) FROM product) + (SELECT count(*) FROM category) + (SELECT count(*) FROM barcode)'), 'what is deleted is not linked any more');

# A whole branch, with what refers to it, and what now refers to something else
there(<<'EOC');
UPDATE product SET category = 1, updated_at = now() WHERE category = 30 AND id % 60 = 29;
DELETE FROM product WHERE category = 30;
DELETE FROM category WHERE id = 30;
EOC
like(here("SELECT $deletes FROM possync_pull('barcode')"), qr/^ok\|0\|50\|101\|0$/, 'a category with half of its products');
same('the other half is elsewhere');

# A new row wants the unique value of a deleted one, in the same pull.
there("DELETE FROM product WHERE code IN ('P5', 'P6'); INSERT INTO product (code, category) VALUES ('P5', 2)");
gone('ok|1|0|4|0', 'deleted and made anew under another key');
same('so it is here');

# What is still needed stays, waits, and goes when it can.
my @needed = map { here("SELECT id FROM product WHERE code = '$_'") } 'P10', 'P11', 'P12';
here("INSERT INTO line (product) VALUES ($needed[0]); INSERT INTO later (product) VALUES ($needed[1])");
here(<<'EOC');
CREATE FUNCTION object() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN CASE WHEN OLD.code = 'P12' THEN NULL ELSE OLD END; END$$;
CREATE TRIGGER object BEFORE DELETE ON product FOR EACH ROW EXECUTE FUNCTION object();
EOC
there("DELETE FROM product WHERE code IN ('P10', 'P11', 'P12', 'P13')");
gone('ok|0|0|5|3', 'three of four are kept');
is(here("SELECT string_agg(code, ' ' ORDER BY code) FROM product WHERE code IN ('P10', 'P11', 'P12', 'P13')"), 'P10 P11 P12', 'a line, a deferred one, a trigger');
like(here("SELECT string_agg(reason || ': ' || message, E'\\n' ORDER BY remote_key::int) FROM possync_quarantine"),
	qr/^referenced: .*"line".*\nreferenced: .*"later".*\nreferenced: .*trigger/, 'each for its reason');
like(here("SELECT explanation FROM possync_explain('product', '$needed[0]') ORDER BY 1"), qr/deleted at the remote/, 'as possync_explain tells');
gone('ok|0|0|0|3', 'it is tried again');
is(here("SELECT count(*) FROM possync_compare('barcode')"), 0, 'that is known, and no difference');
here('DELETE FROM line; DELETE FROM later; DROP TRIGGER object ON product');
gone('ok|0|0|3|0', 'and goes when it can');
is(here('SELECT count(*) FROM possync_quarantine'), 0, 'as its entries do');
same('nobody needs it any more');

# One that comes back is the same one.
here("INSERT INTO line SELECT 1, id FROM product WHERE code = 'P20'");
there("CREATE TABLE copy AS SELECT * FROM product WHERE code = 'P20'; DELETE FROM product WHERE code = 'P20'");
gone('ok|0|0|1|1', 'deleted while it is needed');
my $key = here("SELECT id FROM product WHERE code = 'P20'");
there("INSERT INTO product SELECT id, code, 3, active, now() FROM copy");
like(here("SELECT $deletes FROM possync_pull('barcode')"), qr/^ok\|0\|1\|0\|0$/, 'it is back');
is(here("SELECT id FROM product WHERE code = 'P20'"), $key, 'under its key');
is(here('SELECT count(*) FROM possync_quarantine') . here('SELECT count(gone) FROM synchronize_translation'), '00', 'and all is forgotten');
same('with what is new about it');
here('DELETE FROM line');

# So many at once are more likely a mistake.
there("DELETE FROM product WHERE id % 3 = 0");
like(gone('ok|0|0|0|0', 'a third of a table'), qr/\d+ of \d+ rows of model "product" are gone at server "hq", and nothing was deleted.*possync_repair/s, 'is not deleted without being asked');
my $n = here("SELECT count(*) FROM possync_repair('barcode') WHERE action = 'deleted here'");
cmp_ok($n, '>', 1900, 'possync_repair tells which');
is(here("SELECT count(*) FROM possync_repair('barcode', dry_run => false)"), $n, 'and does it');
same('as it was meant');
my $third = there("DELETE FROM product WHERE id % 3 = 1 RETURNING id");
$third = 2 * (() = $third =~ /\d+/g) - 1;    # P5 has no barcode
gone("ok|0|0|$third|0", 'another limit', 'possync.delete_limit = 100');
same('with another limit');

# Deactivated instead
like(here("SELECT possync_set_model('product', on_delete => 'deactivate')"), qr/active = false when deleted there/, 'the usual column is found');
like(($till->psql('postgres', "SELECT possync_set_model('category', on_delete => 'deactivate')"))[2], qr/nothing tells how a row of model "category" is deactivated/, 'where there is one');
like(($till->psql('postgres', "SELECT possync_set_model('product', on_delete => 'deactivate', inactive_field => 'nothing')"))[2], qr/column "nothing" of table \S*product does not exist/, 'a wrong name');
like(($till->psql('postgres', "SELECT possync_set_model('product', on_delete => 'vanish')"))[2], qr/Allowed are ignore, deactivate and delete/, 'a wrong word');
my $code = there('SELECT min(code) FROM product');
there("DELETE FROM product WHERE code = '$code'");
gone('ok|0|0|2|0', 'one is deactivated, its barcode deleted');
is(here("SELECT active FROM product WHERE code = '$code'"), 'f', 'it is still here');
gone('ok|0|0|0|0', 'once');
is(here("SELECT count(*) FROM possync_compare('barcode')"), 0, 'that is no difference');

here('ALTER TABLE product ADD in_use boolean');
here("SELECT * FROM possync_add_model('barcode', server => 'hq'); SELECT possync_set_field('product', 'in_use', copy => false)");
here("SELECT possync_set_model('product', inactive_field => 'in_use', inactive_value => 'false'); ALTER TABLE product RENAME in_use TO used");
here("SELECT * FROM possync_add_model('barcode', server => 'hq'); SELECT possync_set_field('product', 'used', copy => false)");
like(here("SELECT error_detail FROM possync_pull('barcode')"), qr/column "in_use" of table product, which tells that a row is deactivated, does not exist any more/, 'a renamed column is missed before anything is done');
here("ALTER TABLE product DROP used; SELECT * FROM possync_add_model('barcode', server => 'hq'); SELECT possync_set_model('product', inactive_field => 'active', inactive_value => 'false')");

# A change that waits to be pushed is not taken away.
here("SELECT possync_set_model('product', on_delete => 'delete'); SELECT possync_queue('product')");
$code = there('SELECT max(code) FROM product');
here("UPDATE product SET active = NOT active WHERE code = '$code'");
there("DELETE FROM product WHERE code = '$code'");
here("SELECT possync_pull('barcode')");
is(here("SELECT count(*) FROM product WHERE code = '$code'"), 1, 'a changed row waits');

# Another master is read first; what is not there may be on its way.
$master->safe_psql('postgres', 'CREATE DATABASE empty');
$master->safe_psql('empty', 'CREATE TABLE category (id serial PRIMARY KEY, name text, parent integer); CREATE TABLE product (id serial PRIMARY KEY, code text, category integer, active boolean, updated_at timestamptz); CREATE TABLE barcode (product integer, code text, PRIMARY KEY (product, code))');
$n = here('SELECT count(*) FROM product');
here("ALTER SERVER hq OPTIONS (SET dbname 'empty')");
here("SELECT possync_pull('barcode')");
is(here('SELECT count(*) FROM product'), $n, 'an empty master empties nothing');
here("ALTER SERVER hq OPTIONS (SET dbname 'postgres')");

done_testing();
