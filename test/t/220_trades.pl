# Whole schemas as trades have them, pulled into an empty till and into one that
# has a part of the rows under other keys; see test/trades.

use strict;
use warnings FATAL => 'all';

use File::Basename qw(dirname);
use Possync;
use Possync::Content;
use Possync::Copy;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
my $trades = dirname(__FILE__) . '/../trades';

my %trades = (
	rental => {
		roots => [qw(payment film_actor film_category)],
		business => {
			'public.language' => ['name'],
			'public.country' => ['country'],
			'public.city' => [ 'city', 'country_id' ],
			'public.address' => [ 'address', 'city_id' ],
			'public.shop' => ['manager_id'],
			'public.staff' => ['username'],
			'public.category' => ['name'],
			'public.actor' => [ 'first_name', 'last_name' ],
			'public.film' => ['title'],
			'public.film_actor' => [ 'actor_id', 'film_id' ],
			'public.film_category' => [ 'film_id', 'category_id' ],
			'public.inventory' => [ 'film_id', 'shop_id', 'copy' ],
			'public.customer' => ['email'],
			'public.rental' => [ 'rented_at', 'inventory_id', 'customer_id' ],
			'public.payment' => [ 'paid_at', 'rental_id' ],
		},
		natural => [qw(public.film_actor public.film_category)],
		changes => <<'EOC',
BEGIN;
INSERT INTO staff (staff_id, username, address_id, shop_id) VALUES (100, 'boss', 1, 1);
INSERT INTO shop (shop_id, manager_id, address_id) VALUES (50, 100, 2);
UPDATE staff SET shop_id = 50 WHERE staff_id IN (100, 3);
UPDATE staff SET last_update = now() WHERE staff_id = 3;
COMMIT;
UPDATE shop SET address_id = 7 WHERE shop_id = 2;
UPDATE film SET rating = 'R', language_id = 1 + language_id % 4, last_update = now() WHERE film_id % 10 = 0;
UPDATE customer SET brought_by = 250 - customer_id WHERE customer_id < 250;
UPDATE payment SET staff_id = 1, amount = 99 WHERE paid_at = '2022-02-03';
INSERT INTO payment (paid_at, rental_id, staff_id, amount) VALUES ('2023-01-01', 5, 100, 1);
EOC
	},
	works => {
		roots => [ 'base.partner_tag', '"Sales & Stock".sales_order', 'ledger.posting', 'ledger.note', 'ledger.attachment' ],
		business => {
			'base.company' => ['name'],
			'base.partner' => ['ref'],
			'base.users' => ['login'],
			'base.tag' => ['name'],
			'base.partner_tag' => [ 'tag', 'partner' ],
			'"Sales & Stock"."user"' => ['select'],
			'"Sales & Stock"."Größe"' => ['code'],
			'"Sales & Stock".product' => ['sku'],
			'"Sales & Stock".sales_order' => ['number'],
			'"Sales & Stock".sales_order_line' => [ 'order', 'line' ],
			'ledger.tenant' => ['name'],
			'ledger.account' => [ 'tenant_id', 'code' ],
			'ledger.journal' => [ 'tenant_id', 'name' ],
			'ledger.entry' => [ 'tenant_id', 'journal_id', 'number' ],
			'ledger.posting' => [ 'tenant_id', 'entry_id', 'line' ],
			'ledger.note' => ['title'],
			'ledger.attachment' => ['title'],
		},
		surrogate => { '"Sales & Stock"."user"' => ['order'] },
		natural => [ 'base.partner_tag', '"Sales & Stock"."Größe"', '"Sales & Stock".sales_order_line', 'ledger.posting' ],
		changes => <<'EOC',
UPDATE base.partner SET parent_id = 1 + id % 50, write_date = now() AT TIME ZONE 'UTC' WHERE id % 6 = 0;
UPDATE base.users SET write_uid = id, settings = '{"new": true}' WHERE id % 2 = 0;
UPDATE base.company SET parent_id = 6, partner_id = 99 WHERE id = 1;
UPDATE "Sales & Stock".product SET replaced_by = 'SKU1' WHERE id % 4 = 0;
INSERT INTO "Sales & Stock".product (sku, size, replaced_by) VALUES ('NEW', 'S1', 'NEW');
UPDATE "Sales & Stock".sales_order_line SET sku = 'NEW' WHERE line = 2;
INSERT INTO "Sales & Stock".sales_order_line VALUES (1, 9, 'NEW', 9, 1);
INSERT INTO ledger.account (tenant_id, id, code, parent_id) VALUES (2, 1000, 'root', 1000);
UPDATE ledger.account SET parent_id = 1000 WHERE tenant_id = 2 AND id < 30;
UPDATE ledger.journal SET partner_tenant = NULL WHERE partner_tenant = 3;
UPDATE ledger.posting SET account_id = 1000 WHERE tenant_id = 2 AND line = 1;
EOC
	});

# The SQL file of a trade, with or without its data
sub load_file
{
	my ($node, $dbname, $name, @options) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	PostgreSQL::Test::Utils::run_log(
		[ 'psql', '-qX', '-v', 'ON_ERROR_STOP=1', @options, '-d', $node->connstr($dbname), '-f', "$trades/$name.sql" ])
	  or die "$name.sql";
	return;
}

sub configure
{
	my ($dbname, $trade) = @_;
	my $calls = join '', map { "SELECT * FROM possync_add_model('$_', server => 'hq');\n" } @{ $trade->{roots} };

	for my $table (sort keys %{ $trade->{business} })
	{
		my $model = "(SELECT name FROM synchronize_model WHERE relation = '$table'::regclass)";
		my $fields = join ', ', map { "'$_'" } @{ $trade->{business}{$table} };
		$calls .= "SELECT possync_set_field($model, '$_', match => true);\n" for @{ $trade->{business}{$table} };
		$calls .= <<"EOC";
SELECT possync_set_field(m.name, f.name, match => false) FROM synchronize_model m JOIN synchronize_field f ON f.model = m.id
WHERE m.relation = '$table'::regclass AND f.match AND f.name NOT IN ($fields);
EOC
	}
	run_sql($till, $dbname, $calls);
	return split /\n/, run_sql($till, $dbname, 'SELECT name FROM synchronize_model WHERE relation::text = ANY ('
		. "ARRAY[" . join(', ', map { "'$_'::regclass::text" } @{ $trade->{roots} }) . ']) ORDER BY id');
}

sub try_trade
{
	my ($name, $trade) = @_;
	my %natural = map { ($_ => 1) } @{ $trade->{natural} };
	my @description = (business => $trade->{business});
	load_file($master, $name, $name, '-v', 'data=1');

	my $all = Possync::Content->new($master, $name, @description);
	my %surrogate = %{ $trade->{surrogate} // {} };
	for my $table (grep { !$natural{$_} } $all->tables)
	{
		$surrogate{$table} //= [ grep { $_ eq 'id' || $table . '_id' eq "public.$_" } @{ $all->{columns}{$table} } ];
	}
	push @description, surrogate => \%surrogate;
	$all = Possync::Content->new($master, $name, @description);
	is(scalar(my @tables = $all->tables), scalar keys %{ $all->{columns} }, "$name: all tables are compared");

	my %models;
	my %own;
	for my $kind ('empty', 'half')
	{
		my $dbname = "${name}_$kind";
		load_file($till, $dbname, $name);
		if ($kind eq 'half')
		{
			my $n = 0;
			my $part = $all->part(sub { $n++ % 7 == 0 });
			run_sql($till, $dbname, $all->load($part, other => 1));
			number_on($till, $dbname);
		}
		connect_till($till, $master->port, dbname => $dbname, remote => $name);
		$models{$dbname} = [ configure($dbname, $trade) ];
		my $before = Possync::Content->new($till, $dbname, @description)->rows;
		my $matched = 0;
		$matched += keys %$_ for values %$before;
		my $rows = 0;
		$rows += @$_ for values %{ $all->{rows} };
		is( pull_all($till, $dbname, @{ $models{$dbname} }) =~ s/\|\d+(\|\d+)\z/|n$1/r,
			'ok|' . ($rows - $matched) . "|$matched|n|0", "$dbname: of $rows rows $matched are recognised, the rest created");
		is_content($all, Possync::Content->new($till, $dbname, @description), {}, "$dbname: the same content");
		my $versions = versions($till, $dbname);
		is(pull_all($till, $dbname, @{ $models{$dbname} }), 'ok|0|0|0|0', "$dbname: nothing to do");
		is(versions($till, $dbname), $versions, "$dbname: nothing written");
	}

	run_sql($master, $name, $trade->{changes});
	my $changed = Possync::Content->new($master, $name, @description);
	for my $dbname (sort keys %models)
	{
		like(pull_all($till, $dbname, @{ $models{$dbname} }), qr/^ok\|[1-9]\d*\|0\|[1-9]\d*\|0$/, "$dbname: changes pulled");
		is_content($changed, Possync::Content->new($till, $dbname, @description), {}, "$dbname: the same content again");
		my $versions = versions($till, $dbname);
		is(pull_all($till, $dbname, @{ $models{$dbname} }), 'ok|0|0|0|0', "$dbname: again nothing to do");
		is(versions($till, $dbname), $versions, "$dbname: nothing written");
	}
	return;
}

eval { try_trade($_, $trades{$_}); 1 } or fail($_) || diag($@)
  for sort keys %trades;

done_testing();
