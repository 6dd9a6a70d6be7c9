# Local sessions delete and change at random what a pull is about to refer to,
# while both trees are pulled again and again: foreign keys hold whenever one
# looks, and in the end everything is there.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "deadlock_timeout = 50ms\n");

shop($master, products => 400, first_key => 1000001, office => 'on');
shop($till, products => 40);
connect_till($till, $master->port);
$till->safe_psql('postgres', <<"EOC");
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT * FROM possync_add_model('price_list', server => 'hq');
SELECT possync_set_field('unit', 'symbol', match => true);
EOC

# Every foreign key of the database, checked by a query of its own
sub broken
{
	return $till->safe_psql('postgres', <<'EOC');
SELECT string_agg(format('%s %s', conname, n), ', ') FROM (
	SELECT conname, (xpath('/row/n/text()', query_to_xml(format(
		'SELECT count(*) AS n FROM %s c WHERE c.%I IS NOT NULL AND NOT EXISTS (SELECT FROM %s p WHERE p.%I = c.%I)',
		conrelid::regclass, a.attname, confrelid::regclass, b.attname, a.attname), false, true, '')))[1]::text::int AS n
	FROM pg_constraint
	JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1]
	JOIN pg_attribute b ON b.attrelid = confrelid AND b.attnum = confkey[1]
	WHERE contype = 'f') f WHERE n > 0
EOC
}

# What a till might do: each statement may fail, none may wait long.
my @harm = (
	"DELETE FROM barcode WHERE id IN (SELECT id FROM barcode ORDER BY random() LIMIT 20)",
	"DELETE FROM price_line WHERE id IN (SELECT id FROM price_line ORDER BY random() LIMIT 20)",
	"DELETE FROM product WHERE id IN (SELECT id FROM product p WHERE NOT EXISTS (SELECT FROM price_line l WHERE l.product = p.id) ORDER BY random() LIMIT 10)",
	"DELETE FROM price_line; DELETE FROM product",
	"DELETE FROM template t WHERE NOT EXISTS (SELECT FROM product p WHERE p.template = t.id)",
	"DELETE FROM category c WHERE NOT EXISTS (SELECT FROM template t WHERE t.category = c.id) AND NOT EXISTS (SELECT FROM category d WHERE d.parent = c.id)",
	"UPDATE product SET cost_price = cost_price + 1 WHERE id % 5 = 0",
	"DELETE FROM price_list WHERE name = 'staff'",
	"DELETE FROM unit u WHERE symbol = 'ml'",
	"UPDATE category SET name = name || '.' WHERE id % 3 = 0");

srand(4711);
my @local = map { Possync::Session->new($till) } 1, 2;
my @pulling = map { Possync::Session->new($till) } 1, 2;
my ($statements, %status) = (0);
my @broken;
my $end = time + 12;
my $round = 0;

while (time < $end)
{
	$round++;
	$master->safe_psql('postgres', <<"EOC");
UPDATE product SET cost_price = $round WHERE id % 3 = 0;
UPDATE barcode SET updated_at = now() WHERE id % 2 = 0;
UPDATE price_line SET price = $round WHERE id % 3 = 0;
UPDATE template SET list_price = $round WHERE id % 4 = 0;
INSERT INTO template (code, name, category, tax, sale_unit, list_price)
SELECT 'X$round-' || i, 'x', (SELECT id FROM category ORDER BY random() LIMIT 1), (SELECT min(id) FROM tax), (SELECT min(id) FROM unit), 1 FROM generate_series(1, 20) i;
INSERT INTO product (template, sku, cost_price) SELECT id, code, 1 FROM template WHERE code LIKE 'X$round-%';
INSERT INTO barcode (product, code) SELECT id, substr(md5(sku), 1, 13) FROM product WHERE sku LIKE 'X$round-%';
EOC
	# now and then everything is read again
	my $anew = $round % 3 == 0 ? 'SELECT count(possync_set_model(name, change_columns => change_columns)) FROM synchronize_model;' : '';
	$pulling[0]->start_sql("SELECT status, sqlstate FROM possync_pull('product')");
	$pulling[1]->start_sql("$anew SELECT status, sqlstate FROM possync_pull('price_list')");
	while (grep { !$_->is_done } @pulling)
	{
		for my $session (@local)
		{
			next unless $session->is_done;
			$statements++;
			$session->start_sql('SET statement_timeout = 2000; ' . $harm[ rand @harm ]);
		}
		select undef, undef, undef, 0.005;
	}
	for my $session (@pulling)
	{
		my ($out, $err) = $session->answer;
		$status{ ($out =~ /((?:ok|failed).*)/)[0] // "$out$err" }++;
	}
	$_->answer(20) for @local;
	push @broken, "round $round: $_" for grep { $_ ne '' } broken();
}

diag explain { rounds => $round, statements => $statements, %status };
is("@broken", '', 'foreign keys held all the time');
cmp_ok($status{'ok|'} // 0, '>', 5, 'pulls succeeded');
is(join(' ', grep { !/^(ok\||failed\|(23503|40P01|55P03|40001)$)/ } sort keys %status), '', 'or failed for what the others did');

# When it is quiet, all of it comes back
$till->safe_psql('postgres', 'DELETE FROM price_line; DELETE FROM product; DELETE FROM template');
$till->safe_psql('postgres', 'DELETE FROM synchronize_position');
is($till->safe_psql('postgres', "SELECT status, rows_left_out FROM possync_pull('$_')"), 'ok|0', "$_, all of it")
  for qw(product price_list);
is(broken(), '', 'foreign keys hold');
is_same($master, $till, 'SELECT * FROM catalogue ORDER BY what, key', 'both sides say the same');
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|signal 11|XX000/, 'nothing leaked');

done_testing();
