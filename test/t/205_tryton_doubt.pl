# Rows whose arrival at a Tryton server is in doubt, in every position: nothing is made
# twice, linked with a wrong record, left behind or held for ever.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Tryton;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'Tryton is not installed' if !Possync::Tryton::installed();

my $erp = Possync::Tryton->new('erp');
my $till = Possync->cluster('till',
	"shared_preload_libraries = 'possync'\nmax_worker_processes = 24\npossync.retry_max = '2s'");
my $proxy = Possync::Proxy->new($erp->port);
my $database;

# After this a row that is not there cannot come any more: 1 + 2 * (1.5 + 0.5) s
my %times = (overlap => '1s', call_timeout => '1500ms', connect_timeout => '500ms');
my $settled = 5.5;

sub ask { return $till->safe_psql($database, $_[0]) }

sub push_rows
{
	return ask("SELECT concat_ws(' ', status, rows_left_out, error) FROM possync_push('$_[0]')");
}

# From now on the remote's answer to a write is lost, or it is not any more.
sub lose_answers
{
	ask("ALTER DATABASE $database "
		  . ($_[0] ? "SET possync.fault = 'error: push written'" : 'RESET possync.fault'));
	return;
}

sub begin_with
{
	my ($name, $sql, %options) = @_;
	$database = $name;
	$till->safe_psql('postgres', "CREATE DATABASE $database");
	$erp->connect_till($till, dbname => $database, %times, %options);
	ask($sql);
	return;
}

sub waits { return ask("SELECT string_agg(message, ' ') FROM possync_quarantine") }
sub queued { return ask('SELECT count(*) FROM synchronize_queue') }

my $category = <<'EOC';
CREATE TABLE product_category (id serial PRIMARY KEY, name text NOT NULL, parent integer REFERENCES product_category,
	UNIQUE (parent, name));
SELECT setval('product_category_id_seq', 1000);
SELECT * FROM possync_add_model('product_category', 'erp');
SELECT possync_set_field('product_category', f, match => true) FROM unnest('{name,parent}'::name[]) f;
SELECT possync_set_model('product_category', on_unknown => 'match_create');
SELECT possync_queue('product_category');
EOC
my $party = <<'EOC';
CREATE TABLE party_party (id serial PRIMARY KEY, code text, name text);
SELECT setval('party_party_id_seq', 1000);
SELECT * FROM possync_add_model('party_party', 'erp');
SELECT possync_set_field('party_party', 'code', match => true);
SELECT possync_set_model('party_party', on_unknown => 'match_create');
SELECT possync_queue('party_party');
EOC
my $categories = "SELECT string_agg(c.name || coalesce('<' || p.name, ''), ' ' ORDER BY c.id)
	FROM product_category c LEFT JOIN product_category p ON p.id = c.parent WHERE c.name LIKE";

# Rows that are recognised by others of their table
$erp->call('model.product.category.create', [ { name => 'SA' }, { name => 'SC' } ]);
begin_with('tree', $category);
ask("INSERT INTO product_category (id, name, parent) VALUES (1, 'SA', NULL), (2, 'SB', 1), (3, 'SC', NULL)");
is(push_rows('product_category'), 'ok 0', 'two that are there, and one below');
is($erp->sql("$categories 'S%'"), 'SA SC SB<SA', 'each is what it is');
is(ask("SELECT count(DISTINCT remote_key) FROM synchronize_translation"), 3, 'and linked with it');

begin_with('tree_lost', $category);
lose_answers(1);
ask("INSERT INTO product_category (id, name, parent) VALUES (1, 'XA', NULL), (2, 'XB', 1), (3, 'XC', 2)");
like(push_rows('product_category'), qr/^failed/, 'the answer is lost');
lose_answers(0);
sleep $settled;
is(push_rows('product_category'), 'ok 0', 'they are found');
is($erp->sql("$categories 'X%'"), 'XA XB<XA XC<XB', 'and not made again');

# Rows that refer to each other cannot be made one after the other
begin_with('circle', $category);
ask("BEGIN; INSERT INTO product_category (id, name, parent) VALUES (1, 'CA', NULL), (2, 'CB', 1);
	UPDATE product_category SET parent = 2 WHERE id = 1; COMMIT");
is(push_rows('product_category'), 'ok 1', 'two that refer to each other wait');
like(waits(), qr/rows that refer to each other cannot be created/, 'it says why');
is(queued(), 3, 'and are not forgotten');

# Deleted before it is known to have arrived; then there again
begin_with('deleted', $party);
lose_answers(1);
ask("INSERT INTO party_party VALUES (1, 'Z1', 'z')");
like(push_rows('party_party'), qr/^failed/, 'the answer is lost');
lose_answers(0);
ask('DELETE FROM party_party');
like(push_rows('party_party'), qr/^ok/, 'the row is deleted');
is($erp->sql("SELECT count(*) FROM party_party WHERE code = 'Z1'"), 0, 'there, too');
is(queued(), 0, 'nothing is queued any more');
is(ask('SELECT count(*) FROM synchronize_translation WHERE remote_key < 0'), 0, 'no provisional key is left');
ask("INSERT INTO party_party VALUES (1, 'Z1', 'again'), (2, 'Z2', 'other')");
is(push_rows('party_party'), 'ok 0', 'a row of the same key, and another') or diag(waits());
is($erp->sql("SELECT count(*) FROM party_party WHERE code IN ('Z1', 'Z2')"), 2, 'are there');

# Changed before it is known to have arrived
begin_with('changed', $party);
lose_answers(1);
ask("INSERT INTO party_party VALUES (1, 'Y1', 'y')");
like(push_rows('party_party'), qr/^failed/, 'the answer is lost');
lose_answers(0);
ask("UPDATE party_party SET code = 'Y2'");
sleep $settled;
is(push_rows('party_party'), 'ok 0', 'its match field is changed');
is($erp->sql("SELECT string_agg(code, ' ') FROM party_party WHERE code LIKE 'Y%'"), 'Y2', 'it is still one');

# Sent, and never arrived
begin_with('refused', $party, port => $proxy->port);
push_rows('party_party');
$proxy->cut_after_sent(900);
ask("INSERT INTO party_party SELECT n, 'N' || n, 'n' FROM generate_series(1, 30) n");
my $out = push_rows('party_party');
$proxy->pass;
like($out, qr/^failed/, "the connection is lost: $out");
push_rows('party_party');
sleep $settled;
like(push_rows('party_party'), qr/^ok 0/, 'they are sent again when they cannot come any more');
is($erp->sql("SELECT count(*) FROM party_party WHERE code LIKE 'N_' OR code LIKE 'N__'"), 30, 'each is there once');

# Links
begin_with('links', $party . <<'EOC');
CREATE TABLE party_category (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE party_cat (party integer REFERENCES party_party, category integer REFERENCES party_category,
	PRIMARY KEY (party, category));
SELECT * FROM possync_add_model('party_category', 'erp');
SELECT possync_queue('party_category');
SELECT * FROM possync_add_model('party_cat', 'erp', remote => 'party.party:categories');
SELECT possync_set_field('party_cat', 'party', remote => 'origin');
SELECT possync_set_field('party_cat', 'category', remote => 'target');
SELECT possync_queue('party_cat');
EOC
my $links = "SELECT string_agg(p.code || '-' || c.name, ' ' ORDER BY 1) FROM party_category_rel r
	JOIN party_party p ON p.id = r.party JOIN party_category c ON c.id = r.category";
ask("BEGIN; INSERT INTO party_party VALUES (1, 'L0', 'l'); INSERT INTO party_category VALUES (1, 'A'), (2, 'B');
	INSERT INTO party_cat VALUES (1, 1); COMMIT");
is(push_rows('party_cat'), 'ok 0', 'a new row with a link');
ask('INSERT INTO party_cat VALUES (1, 2)');
is(push_rows('party_cat'), 'ok 0', 'and one more');
lose_answers(1);
ask("BEGIN; INSERT INTO party_party VALUES (2, 'L1', 'l'); INSERT INTO party_cat VALUES (2, 1); COMMIT");
like(push_rows('party_cat'), qr/^failed/, 'the answer is lost');
lose_answers(0);
is(push_rows('party_cat'), 'ok 0', 'both are found');
ask('DELETE FROM party_cat WHERE party = 1 AND category = 1');
is(push_rows('party_cat'), 'ok 0', 'a link is taken away');
is($erp->sql($links), 'L0-B L1-A', 'the links are these') or diag(waits());
is(queued(), 0, 'nothing is queued any more');

# What tells a row has to be there
begin_with('nameless', $party);
ask("INSERT INTO party_party VALUES (1, NULL, 'Nulla')");
is(push_rows('party_party'), 'ok 1', 'a row without its match field waits');
like(waits(), qr/its match field "code" is null/, 'it says why');
is($erp->sql("SELECT count(*) FROM party_party WHERE name = 'Nulla'"), 0, 'it was not sent');

# A runner that goes on for long: no key becomes old, new options count
begin_with('runner', $party, port => $proxy->port);
sub comes
{
	my ($code) = @_;
	for (1 .. 75) { return 1 if $erp->sql("SELECT count(*) FROM party_party WHERE code = '$code'"); sleep 0.2 }
	diag(ask("SELECT failures || ' ' || coalesce(error, '') FROM synchronize_schedule"), waits());
	return 0;
}
ask("SELECT possync_schedule('party_party', 'push', every => '1 second')");
ask("INSERT INTO party_party SELECT n, 'R' || n, 'r' FROM generate_series(1, 30) n");
ok(comes('R30'), 'a runner pushes');
sleep 4;
ask("INSERT INTO party_party VALUES (100, 'R100', 'r')");
ok(comes('R100'), 'and again after a while');
$proxy->down;
ask("INSERT INTO party_party VALUES (200, 'R200', 'r')");
sleep 3;
ask("ALTER SERVER erp OPTIONS (SET url 'http://127.0.0.1:" . $erp->port . "')");
ok(comes('R200'), 'to where the server has moved');
ask("SELECT possync_unschedule('party_party', 'push')");
is($erp->sql("SELECT count(*) FROM (SELECT code FROM party_party GROUP BY code HAVING count(*) > 1) d"), 0, 'nothing is there twice');
unlike(slurp_file($till->logfile), qr/terminated by signal|PANIC|TRAP/, 'no process died');

done_testing();
