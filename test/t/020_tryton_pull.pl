# A tree of products pulled from a real Tryton server: whole, again with nothing
# changed, and what changed.  It is one of the first, for it makes the server that the
# other tests copy, while these need none.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Tryton;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'Tryton is not installed' if !Possync::Tryton::installed();

my $erp = Possync::Tryton->new('erp');
my $till = Possync->cluster('till');
my $proxy = Possync::Proxy->new($erp->port);

$erp->connect_till($till, port => $proxy->port);
$till->safe_psql('postgres', <<'EOC');
CREATE TABLE product_uom_category (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE product_uom (id serial PRIMARY KEY, name text NOT NULL, symbol text, factor float8,
	rate float8, digits integer, active boolean, category integer NOT NULL REFERENCES product_uom_category);
CREATE TABLE product_category (id serial PRIMARY KEY, name text NOT NULL,
	parent integer REFERENCES product_category);
CREATE TABLE product_template (id serial PRIMARY KEY, name text NOT NULL, code text, type text,
	active boolean, list_price numeric(16,4), stamp timestamptz, default_uom integer NOT NULL REFERENCES product_uom);
CREATE TABLE product_product (id serial PRIMARY KEY, code text, active boolean, title text,
	template integer NOT NULL REFERENCES product_template);
CREATE TABLE product_template_category (template integer REFERENCES product_template,
	category integer REFERENCES product_category, PRIMARY KEY (template, category));
SELECT setval(c::regclass, 1000) FROM unnest('{product_uom_category_id_seq,product_uom_id_seq,
	product_category_id_seq,product_template_id_seq,product_product_id_seq}'::text[]) c;
SELECT * FROM possync_add_model('product_product', 'erp');
SELECT * FROM possync_add_model('product_template_category', 'erp', remote => 'product.template:categories');
SELECT possync_set_field('product_product', 'title', remote => 'template.name');
SELECT possync_set_field('product_template', 'stamp', remote => 'create_date');
SELECT possync_set_field('product_template_category', 'template', remote => 'origin');
SELECT possync_set_field('product_template_category', 'category', remote => 'target');
SELECT * FROM possync_add_model('product_category', 'erp');
EOC
my $session = Possync::Session->new($till);

sub pull
{
	my ($model, $more) = @_;
	my ($out, $err) = $session->run(
		"SELECT concat_ws(' ', status, rows_read, rows_created, rows_updated, rows_left_out, error, error_detail)"
		  . " FROM possync_pull('$model'" . ($more // '') . ")");
	return $out || $err;
}

sub ask { return $till->safe_psql('postgres', $_[0]) }

my $units = $erp->sql('SELECT count(*) FROM product_uom');
my $categories = $erp->sql('SELECT count(*) FROM product_uom_category');
my $all = $units + $categories + 3;
is(pull('product_product'), "ok $all $all 0 0", 'all of the tree');
is(pull('product_template_category'), 'ok 3 3 0 0', 'and what a many2many field links');
is(ask("SELECT concat_ws('|', p.code, p.active, title, t.name, list_price, u.symbol, c.name)
	FROM product_product p JOIN product_template t ON t.id = template
	JOIN product_uom u ON u.id = default_uom JOIN product_uom_category c ON c.id = u.category ORDER BY p.code"),
	"COF1|t|Coffee|Coffee|2.5000|u|Units\nCOF2|t|Coffee|Coffee|2.5000|u|Units", 'as they are there');
is(ask('SELECT c.name FROM product_template_category JOIN product_category c ON c.id = category'),
	'Drinks', 'the link');
is(ask("SELECT stamp AT TIME ZONE 'UTC' FROM product_template"),
	$erp->sql("SELECT create_date FROM product_template"), 'to the microsecond');
is(ask("SELECT string_agg(name, ',' ORDER BY name) FROM product_uom"),
	$erp->sql("SELECT string_agg(name, ',' ORDER BY name) FROM product_uom"), 'units');

# A poll is one call for a model, on connections of their own
{
	my $before = $proxy->stats->{connections};
	like(pull('product_product'), qr/^ok 0 0 0 0/, 'nothing changed');
	is($proxy->stats->{connections} - $before, 4, 'one call for every model');
}

# What changed, and nothing else
$erp->call('model.product.template.write', [1], { list_price => Possync::Tryton::decimal('2.75') });
is(pull('product_product'), 'ok 3 0 1 0', 'a price: the row, and those that show its name');
is(ask('SELECT list_price FROM product_template'), '2.7500', 'the new price');
$erp->call('model.product.template.write', [1], { name => "Caf\x{e9} \x{20ac} \"x\" \\ \x{1f600}" });
is(pull('product_product'), 'ok 3 0 3 0', 'a name, and where it is shown');
is(ask("SELECT DISTINCT t.name = title AND title = U&'Caf\\00e9 \\20ac \"x\" \\\\ \\+01f600' FROM product_template t, product_product"),
	't', 'all characters');
my $rum = $erp->call('model.product.template.create', [ { name => 'Rum', type => 'goods',
	default_uom => $erp->call('model.product.uom.search', [ [ 'symbol', '=', 'l' ] ], 0, 1, undef)->[0],
	list_price => Possync::Tryton::decimal('12.3456'),
	products => [ [ 'create', [ {}, {} ] ] ] } ])->[0];
like(pull('product_product'), qr/^ok \d+ 3 0 0/, 'a new product');
$erp->call('model.product.template.write', [$rum], { active => JSON::PP::false,
	products => [ [ 'write', $erp->call('model.product.product.search', [ [ 'template', '=', $rum ] ], 0, undef, undef),
		{ active => JSON::PP::false } ] ] });
like(pull('product_product'), qr/^ok \d+ 0 \d 0/, 'archived');
is(ask("SELECT string_agg(DISTINCT active::text, ',') FROM product_template WHERE name = 'Rum'"), 'false', 'not active');

# A link alone changes nothing else
my $category = $erp->call('model.product.category.create', [ { name => 'Hot' } ])->[0];
$erp->call('model.product.template.write', [1], { categories => [ [ 'add', [$category] ] ] });
like(pull('product_template_category'), qr/^ok \d+ 2 /, 'one link more');
like(pull('product_template_category'), qr/^ok 0 0 0 0/, 'and no more');

# What was committed late is in the window
{
	my $top = $erp->sql('SELECT extract(epoch FROM max(coalesce(write_date, create_date))) FROM product_category');
	$erp->sql("INSERT INTO product_category (name, create_date, create_uid, active)
		SELECT 'late', max(coalesce(write_date, create_date)) - interval '5 min', 1, true FROM product_category")
	  if $erp->sql("SELECT count(*) FROM information_schema.columns WHERE table_name = 'product_category' AND column_name = 'active'");
	$erp->sql("INSERT INTO product_category (name, create_date, create_uid)
		SELECT 'late', max(coalesce(write_date, create_date)) - interval '5 min', 1 FROM product_category")
	  if !$erp->sql("SELECT count(*) FROM product_category WHERE name = 'late'");
	like(pull('product_category'), qr/^ok \d+ 1 0 0/, 'a record that was committed late');
	like(pull('product_category'), qr/^ok 0 0 0 0/, 'once');
	$erp->sql("INSERT INTO product_category (name, create_date, create_uid)
		SELECT 'very late', now() AT TIME ZONE 'UTC' - interval '5 days', 1");
	like(pull('product_category'), qr/^ok 0 0 0 0/, 'one that was committed days late is not seen');
	ask("UPDATE synchronize_position SET position = regexp_replace(position, '\"swept\":\"\\d+\"', '\"swept\":\"0\"')");
	like(pull('product_category'), qr/^ok \d+ 1 0 0/, 'but by the sweep');
	isnt($top, '', 'stamps are there');
}

# What does not fit is said, all of it, before anything is written
ask("ALTER TABLE product_uom ADD nosuch text, ADD rounding boolean");
ask("SELECT * FROM possync_add_model('product_product', 'erp')");
my $told = pull('product_product');
like($told, qr/field "nosuch" of remote model product\.uom does not exist \(field "nosuch" of product_uom\)/, 'no such field');
like($told, qr/field "rounding" of remote model product\.uom is a float field, which cannot be assigned to type boolean/, 'nor such type');
ask("ALTER TABLE product_uom DROP nosuch, DROP rounding");
ask("SELECT * FROM possync_add_model('product_product', 'erp')");
like(pull('product_product'), qr/^ok/, 'and goes on when that is mended');
ask("SELECT possync_set_model('product_uom', remote => 'no.such')");
like(pull('product_product'), qr/remote model no\.such cannot be read/, 'no such model');
ask("SELECT possync_set_model('product_uom', remote => 'product.uom')");
like((ask_error("SELECT possync_set_model('product_uom', remote => 'product uom')"))[0],
	qr/"product uom" is not the name of a table.*Write the model as Tryton does/s, 'nor a name');

sub ask_error
{
	my ($status, $out, $err) = $till->psql('postgres', $_[0]);
	return $err;
}

# Tables made from what the server tells
$till->safe_psql('postgres', 'CREATE DATABASE fresh');
$erp->connect_till($till, dbname => 'fresh');
sub fresh { return $till->safe_psql('fresh', $_[0]) }
is(fresh("SELECT count(*) > 100 FROM possync_remote_models('erp') WHERE model LIKE '%.%'"), 't', 'what there is');
is(fresh("SELECT concat_ws(' ', kind, type, refers_to, key, required, stored) FROM possync_remote_fields('erp', 'product.template') WHERE field = 'default_uom'"),
	'many2one integer product.uom f t t', 'and of what');
is(fresh("SELECT string_agg(model || ' ' || relation, ',') FROM possync_create_table('erp', 'product.product', '{template,code,active,template.name,list_price}')"),
	'product_product product_product,product_template product_template,product_uom product_uom,product_uom_category product_uom_category',
	'a table, and those it depends on');
fresh("SELECT * FROM possync_create_table('erp', 'product.category', '{name,parent,templates}')");
is(fresh("SELECT string_agg(status || ' ' || coalesce(error, ''), ',') FROM unnest('{product_product,product_category,product_category_templates}'::text[]) m, possync_pull(m)"),
	'ok ,ok ,ok ', 'are pulled');
is(fresh("SELECT string_agg(concat_ws(' ', code, template_name, list_price), ',' ORDER BY code) FROM product_product WHERE code LIKE 'COF%'"),
	fresh("SELECT string_agg(concat_ws(' ', p.code, t.name, '2.75'), ',' ORDER BY p.code) FROM product_product p JOIN product_template t ON t.id = template WHERE p.code LIKE 'COF%'"),
	'as they are there');
is(fresh("SELECT count(*) FROM product_category_templates"), $erp->sql('SELECT count(*) FROM "product_template-product_category"'), 'links, too');
like(($till->psql('fresh', "SELECT * FROM possync_create_table('erp', 'sale.sale', '{nosuch}')"))[2], qr/remote model "sale.sale" has no field "nosuch"/, 'no such field');
like(($till->psql('fresh', "SELECT * FROM possync_create_table('erp', 'sale.sale', '{lines}')"))[2], qr/is no column.*make a table for that/s, 'a list is no column');
like(($till->psql('fresh', "SELECT * FROM possync_create_table('erp', 'no.such')"))[2], qr/remote model "no.such" cannot be read/, 'no such model');

# Both sides compared, and what was deleted there
is(ask("SELECT count(*) FROM possync_compare('product_product')"), 0, 'nothing differs');
ask("UPDATE product_template SET name = 'here' WHERE code = 'COF'");
is(ask("SELECT string_agg(model_name || ' ' || difference, ',') FROM possync_compare('product_product')"), 'product_template different', 'this does');
is(ask("SELECT count(*) FROM possync_repair('product_product', dry_run => false)"), 1, 'mended');
is(ask("SELECT count(*) FROM possync_compare('product_product')"), 0, 'nothing differs any more');
ask('DELETE FROM product_template_category');
is(ask("SELECT string_agg(DISTINCT difference, ',') FROM possync_compare('product_template_category')"), 'lost here', 'links are gone');
ask("SELECT * FROM possync_repair('product_template_category', dry_run => false)");
is(ask('SELECT count(*) FROM product_template_category'), $erp->sql('SELECT count(*) FROM "product_template-product_category"'), 'and back');
is(ask("SELECT bool_and(equal) FROM possync_control('product_product')"), 't', 'sums are the same');
ask("SELECT possync_set_model(m, on_delete => 'delete') FROM unnest('{product_product,product_template,product_template_category}'::text[]) m");
$erp->call('model.product.product.delete', $erp->call('model.product.product.search', [ [ 'template', '=', $rum ] ], 0, undef, undef));
$erp->call('model.product.template.delete', [$rum]);
ask("ALTER DATABASE postgres SET possync.compare_interval = 0");
$session->quit;
$session = Possync::Session->new($till);
pull('product_template_category');
pull('product_product') for 1 .. 2;
is(ask("SELECT count(*) FROM product_template WHERE name = 'Rum'"), 0, 'deleted there, and here');
is(ask('SELECT count(*) FROM product_product'), $erp->sql('SELECT count(*) FROM product_product'), 'with what belonged to it');
ask("ALTER DATABASE postgres RESET possync.compare_interval");
$session->quit;
$session = Possync::Session->new($till);

# A session that the server has forgotten is renewed, once
$erp->sql('DELETE FROM ir_session');
undef $erp->{authorization};
like(pull('product_product'), qr/^ok/, 'a forgotten session');
is($erp->sql("SELECT count(*) FROM ir_session"), 1, 'one new session');

# A wrong password is not tried again and again
ask("ALTER USER MAPPING FOR CURRENT_USER SERVER erp OPTIONS (SET password 'wrong')");
like(pull('product_product'), qr/refused user "admin"/, 'a wrong password');
for (1 .. 10)
{
	pull('product_product');
}
is($erp->sql("SELECT count(*) FROM res_user_login_attempt"), '1', 'the server was asked once')
  or diag($erp->sql('SELECT * FROM res_user_login_attempt'));
ask("ALTER USER MAPPING FOR CURRENT_USER SERVER erp OPTIONS (SET password 'admin12345')");
like(pull('product_product'), qr/^ok/, 'the right one is tried at once');
unlike(ask('SELECT string_agg(h::text, chr(10)) FROM synchronize_history h'), qr/admin12345|wrong\b.*wrong\b/,
	'no password in the history');
done_testing();
