# The shop of the demo, pulled into a till that has a part of it under other
# keys: afterwards the till says the same about everything as the master.

use strict;
use warnings FATAL => 'all';

use Possync;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $proxy = Possync::Proxy->new($master->port);
my $catalogue = "SELECT * FROM catalogue WHERE key <> 'OWN' ORDER BY what, key";

shop($master, products => 500, first_key => 1000001, office => 'on');
shop($till, products => 50);
$till->safe_psql('postgres', <<'EOC');
UPDATE template SET list_price = list_price * 0.9 WHERE id % 3 = 0;
INSERT INTO product (template, sku, cost_price) SELECT min(id), 'OWN', 1 FROM template;
EOC
connect_till($till, $proxy->port);
$till->safe_psql('postgres', <<'EOC');
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT * FROM possync_add_model('price_list', server => 'hq');
SELECT possync_set_field('unit', 'symbol', match => true);
EOC

# Returns status and counts of a run.
sub pull
{
	my ($model, $options) = @_;
	return $till->safe_psql('postgres',
		'SELECT status, rows_created, rows_matched, rows_updated, rows_left_out'
		. " FROM possync_pull('$model'" . ($options // '') . ')');
}

my $before = $till->safe_psql('postgres', $catalogue);
my $promised = pull('product', ', dry_run => true');
is($till->safe_psql('postgres', $catalogue), $before, 'a dry run changes nothing');

my $done = pull('product');
like($done, qr/^ok\|/, 'products pulled');
is($done =~ s/^ok/dry run/r, $promised, 'as the dry run said');
like(pull('price_list'), qr/^ok\|/, 'price lists pulled');
is_same($master, $till, $catalogue, 'both say the same');
is($till->safe_psql('postgres', "SELECT count(*) FROM product WHERE sku = 'OWN'"),
	'1', 'what only the till has is still there');

is(pull('product'), 'ok|0|0|0|0', 'nothing to do');

$master->safe_psql('postgres', <<'EOC');
UPDATE product SET cost_price = 7.77 WHERE sku = 'P0000042';
WITH shelf AS (
	INSERT INTO category (parent, code, name)
	SELECT id, 'NEW', 'Novelties' FROM category WHERE code = 'C1' RETURNING id)
UPDATE template SET category = shelf.id FROM shelf WHERE template.code = 'T000100';
EOC
is(pull('product'), 'ok|1|0|2|0', 'one new row, two changed ones');
is_same($master, $till, $catalogue, 'both say the same again');

pull('product');
cmp_ok($till->safe_psql('postgres', "SELECT rows_read FROM possync_pull('product')"),
	'<', 20, 'only recent changes and tables without a change column are read again');

$proxy->down;
my ($status, $out, $err) = $till->psql('postgres',
	"SELECT status, error, error_detail FROM possync_pull('product')");
like($out, qr/^failed\|could not connect.*refused/s, 'head office out of reach');
$proxy->pass;
is(pull('product'), 'ok|0|0|0|0', 'and back');

done_testing();
