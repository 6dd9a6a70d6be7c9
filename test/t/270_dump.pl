# A till is dumped and restored elsewhere: everything possync knows comes with
# it, and the next pull there goes on where the last one ended.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $other = Possync->cluster('other');
my $catalogue = 'SELECT * FROM catalogue ORDER BY what, key';

shop($master, products => 300, first_key => 1000001, office => 'on');
shop($till, products => 20);
$master->safe_psql('postgres', "CREATE TABLE doubtful (id serial PRIMARY KEY, name text); INSERT INTO doubtful (name) VALUES ('twice'), ('once')");
$till->safe_psql('postgres', "CREATE TABLE doubtful (id serial PRIMARY KEY, name text); INSERT INTO doubtful (name) VALUES ('twice'), ('twice')");
connect_till($till, $master->port);
$till->safe_psql('postgres', <<'EOC');
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT * FROM possync_add_model('price_list', server => 'hq');
SELECT * FROM possync_add_model('doubtful', server => 'hq');
SELECT possync_schedule('product', 'pull', every => '5 minutes');
SELECT possync_set_field('unit', 'symbol', match => true);
SELECT possync_set_field('doubtful', 'name', match => true);
EOC
my @models = qw(product price_list doubtful);

sub pull
{
	my ($node, $database, $columns) = @_;
	return join ' ', map { $node->safe_psql($database, 'SELECT ' . ($columns // 'status') . " FROM possync_pull('$_')") } @models;
}

is(pull($till, 'postgres'), 'ok ok ok', 'first pull');
$master->safe_psql('postgres', "UPDATE product SET cost_price = 1 WHERE sku = 'P0000007'");
is(pull($till, 'postgres'), 'ok ok ok', 'and another');

# Everything possync keeps, tables by their names
my $kept = <<'EOC';
SELECT 'model', to_jsonb(m) FROM synchronize_model m
UNION ALL SELECT 'field', to_jsonb(f) FROM synchronize_field f
UNION ALL SELECT 'child', to_jsonb(c) FROM synchronize_child c
UNION ALL SELECT 'translation', to_jsonb(t) FROM synchronize_translation t
UNION ALL SELECT 'position', to_jsonb(p) FROM synchronize_position p
UNION ALL SELECT 'history', to_jsonb(h) FROM synchronize_history h
UNION ALL SELECT 'quarantine', to_jsonb(q) FROM synchronize_quarantine q
UNION ALL SELECT 'schedule', to_jsonb(s) FROM synchronize_schedule s
UNION ALL SELECT 'counter', to_jsonb(c) FROM synchronize_counter c
UNION ALL SELECT 'sequence', to_jsonb(s) - 'data_type' FROM pg_sequences s WHERE sequencename LIKE 'synchronize%'
ORDER BY 1, 2
EOC
my $before = $till->safe_psql('postgres', $kept);
my $directory = PostgreSQL::Test::Utils::tempdir();

my %ways = (
	plain => sub {
		my ($node, $database) = @_;
		$till->command_ok([ 'pg_dump', '-d', $till->connstr('postgres'), '-f', "$directory/plain.sql" ], 'pg_dump');
		$node->command_ok([ 'psql', '-qX', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database), '-f', "$directory/plain.sql" ], 'restored');
	},
	custom => sub {
		my ($node, $database) = @_;
		$till->command_ok([ 'pg_dump', '-Fc', '-d', $till->connstr('postgres'), '-f', "$directory/custom" ], 'pg_dump -Fc');
		$node->command_ok([ 'pg_restore', '-e', '-j2', '-d', $node->connstr($database), "$directory/custom" ], 'restored -j2');
	},
	inserts => sub {
		my ($node, $database) = @_;
		$till->command_ok([ 'pg_dump', '--inserts', '--no-owner', '-d', $till->connstr('postgres'), '-f', "$directory/inserts.sql" ], 'pg_dump --inserts');
		$node->command_ok([ 'psql', '-qX', '-1', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database), '-f', "$directory/inserts.sql" ], 'restored');
	});

my $new = 0;
for my $way (sort keys %ways)
{
	for my $node ($till, $other)
	{
		my $database = "till_$way";
		my $name = $node->name . " $way";

		$node->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0");
		$ways{$way}->($node, $database);
		is($node->safe_psql($database, $kept), $before, "$name: everything is there");
		is(pull($node, $database, "concat_ws('|', status, rows_created, rows_matched, rows_updated)"), "ok|$new|0|0 ok|0|0|0 ok|0|0|0",
			"$name: nothing is created but what is new");
		is($node->safe_psql($database, "SELECT coalesce((models -> 'barcode' ->> 'read')::int, 0) FROM synchronize_history WHERE model = 'product' ORDER BY id DESC LIMIT 1"), '0',
			"$name: and the pull went on where it was");
		is($node->safe_psql($database, 'SELECT count(*) FROM synchronize_quarantine'), '1', "$name: who was left out still is");
		$master->safe_psql('postgres', "INSERT INTO product (template, sku, cost_price) SELECT min(id), 'NEW $name', 1 FROM template");
		$new++;
		like(pull($node, $database), qr/^ok ok ok$/, "$name: new rows come");
		is($node->safe_psql($database, "SELECT count(*) FROM product WHERE sku = 'NEW $name'"), '1', "$name: once");
		is($node->safe_psql($database, $catalogue), $master->safe_psql('postgres', $catalogue), "$name: both sides say the same");
	}
}

# Renamed
my %renames = (
	'a table' => 'ALTER TABLE barcode RENAME TO label',
	'a schema' => 'CREATE SCHEMA goods; ALTER TABLE tax SET SCHEMA goods; ALTER SCHEMA goods RENAME TO wares',
	'a server' => 'ALTER SERVER hq RENAME TO office',
	'a column' => 'ALTER TABLE template RENAME list_price TO price');
for my $what (sort keys %renames)
{
	$till->safe_psql('postgres', "BEGIN; CREATE TABLE IF NOT EXISTS was AS SELECT 1; $renames{$what}; COMMIT");
	$master->safe_psql('postgres', "INSERT INTO product (template, sku, cost_price) SELECT min(id), 'RENAMED $what', 1 FROM template; UPDATE template SET list_price = list_price + 1");
	my ($out, $err) = ('', '');
	$till->psql('postgres', "SELECT status, error, error_detail FROM possync_pull('product')", stdout => \$out, stderr => \$err);
	if ($what eq 'a table' || $what eq 'a schema')
	{
		like($out, qr/^ok\|/, "$what renamed: it goes on");
		is($till->safe_psql('postgres', "SELECT count(*) FROM product WHERE sku = 'RENAMED $what'"), '1', "$what renamed: rows come");
	}
	else
	{
		note("$what: $out $err");
		like("$out$err", $what eq 'a server' ? qr/server "hq" does not exist/ : qr/list_price/, "$what renamed: it says what is wrong");
		$till->safe_psql('postgres', $what eq 'a server' ? 'ALTER SERVER office RENAME TO hq' : 'ALTER TABLE template RENAME price TO list_price');
		is($till->safe_psql('postgres', "SELECT status FROM possync_pull('product')"), 'ok', "$what renamed back");
	}
}

# Without the extension the user's tables are as they were
my $rows = $till->safe_psql('postgres', 'SELECT * FROM product ORDER BY id');
my ($out, $err) = ('', '');
$till->psql('postgres', 'DROP EXTENSION possync', stdout => \$out, stderr => \$err);
like($err, qr/cannot drop extension possync because other objects depend on it.*server hq/s, 'the server needs the extension');
$till->safe_psql('postgres', 'DROP SERVER hq CASCADE; DROP EXTENSION possync');
is($till->safe_psql('postgres', 'SELECT * FROM product ORDER BY id'), $rows, 'rows stay');
$till->safe_psql('postgres', 'DROP TABLE price_line, price_list, label CASCADE; ALTER TABLE wares.tax SET SCHEMA public');
connect_till($till, $master->port);
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('product', server => 'hq'); SELECT possync_set_field('unit', 'symbol', match => true)");
@models = ('product');
is(pull($till, 'postgres', "concat_ws('|', status, rows_created, rows_left_out)"), 'ok|0|0', 'made again, it recognises every row');

# A model whose table is dropped
$till->safe_psql('postgres', 'CREATE TABLE doomed (id serial PRIMARY KEY, template integer REFERENCES template ON DELETE CASCADE)');
$master->safe_psql('postgres', 'CREATE TABLE doomed (id serial PRIMARY KEY, template integer REFERENCES template)');
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('doomed', server => 'hq'); SELECT possync_pull('doomed'); DROP TABLE doomed");
is(pull($till, 'postgres'), 'ok', 'a table is dropped: others go on');
$till->psql('postgres', "SELECT status, error, error_detail FROM possync_pull('doomed')", stdout => \$out, stderr => \$err);
like("$out$err", qr/local table of model "doomed" does not exist any more/, 'and its own says so');
$till->safe_psql('postgres', "SELECT possync_remove_model('doomed')");
is(pull($till, 'postgres'), 'ok', 'and removed');

done_testing();
