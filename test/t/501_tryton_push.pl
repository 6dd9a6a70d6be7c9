# Sales with their lines pushed to a real Tryton server.

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
$erp->sales_tables($till);

sub ask { return $till->safe_psql('postgres', $_[0]) }

sub push_sales
{
	return ask("SELECT concat_ws(' ', status, rows_created, rows_updated, rows_left_out, error, error_detail)"
		  . " FROM possync_push('sale_sale')");
}

my $there = "SELECT concat_ws('|', s.reference, p.code, l.sequence, l.quantity, l.unit_price, u.symbol, l.product)
	FROM sale_sale s JOIN sale_line l ON l.sale = s.id JOIN party_party p ON p.id = s.party
	JOIN product_uom u ON u.id = l.unit ORDER BY s.reference, l.sequence";

# One sale
ask("SELECT sell('A1', 2)");
is(push_sales(), 'ok 3 0 0', 'a sale and its lines');
is($erp->sql($there), "A1|WALKIN|1|1|2.5000|u|1\nA1|WALKIN|2|2|5.0000|u|1", 'as they are here');
is($erp->sql('SELECT count(DISTINCT create_date) FROM (SELECT create_date FROM sale_sale UNION ALL SELECT create_date FROM sale_line) c'),
	1, 'made in one transaction');
is(ask("SELECT count(*) FROM synchronize_translation WHERE remote_key < 0"), 0, 'no provisional key is left');
is(push_sales(), 'ok 0 0 0', 'once');

# Changes of what is there
ask("UPDATE sale_sale SET comment = 'changed' WHERE reference = 'A1';
	UPDATE sale_line SET quantity = 7, unit_price = 0.0001 WHERE sequence = 2;
	DELETE FROM sale_line WHERE sequence = 1");
like(push_sales(), qr/^ok 0 2 0/, 'changed, and a line taken away');
is($erp->sql($there), 'A1|WALKIN|2|7|0.0001|u|1', 'there, too');
is($erp->sql('SELECT comment FROM sale_sale'), 'changed', 'and the head');
ask("UPDATE sale_sale SET comment = NULL WHERE reference = 'A1'");
like(push_sales(), qr/^ok 0 1 0/, 'nothing for something');
is($erp->sql('SELECT comment IS NULL FROM sale_sale'), 't', 'there, too');
ask("DELETE FROM sale_sale WHERE reference = 'A1'");
like(push_sales(), qr/^ok/, 'a sale cancelled');
is($erp->sql('SELECT count(*) FROM sale_sale'), 0, 'there, too');

# A new customer comes first
ask("INSERT INTO party_party (code, name) VALUES ('NEW', 'new customer');
	SELECT sell('A2', 1);
	UPDATE sale_sale SET party = (SELECT id FROM party_party WHERE code = 'NEW') WHERE reference = 'A2'");
is(push_sales(), 'ok 3 0 0', 'a sale to a new customer');
is($erp->sql($there), 'A2|NEW|1|1|2.5000|u|1', 'who is there');

# What the server refuses waits, alone, with its words
ask(join '', map { "BEGIN; SELECT sell('B$_', 2);"
	  . ($_ == 7 ? "UPDATE sale_line SET quantity = 0.5 WHERE sale = (SELECT id FROM sale_sale WHERE reference = 'B7');" : '')
	  . 'COMMIT;' } 1 .. 20);
is(push_sales(), 'ok 57 0 1', 'one of twenty is refused');
is($erp->sql("SELECT count(*) FROM sale_sale WHERE reference LIKE 'B%'"), 19, 'nineteen are there');
like(ask('SELECT message FROM possync_quarantine'), qr/server "erp": .*digits/i, 'it says why');
ask("UPDATE sale_line SET quantity = 5 WHERE sale = (SELECT id FROM sale_sale WHERE reference = 'B7')");
ask('SELECT possync_retry(id) FROM possync_quarantine');
like(push_sales(), qr/^ok 3 /, 'and goes once it is mended');
is($erp->sql("SELECT count(*) || ' ' || count(DISTINCT reference) FROM sale_sale WHERE reference LIKE 'B%'"), '20 20', 'all are there');

# Many: few calls
ask("SELECT sell('C' || n, 2) FROM generate_series(1, 500) n");
{
	my $before = $proxy->stats->{connections};
	is(push_sales(), 'ok 1500 0 0', 'five hundred sales');
	my $calls = $proxy->stats->{connections} - $before;
	cmp_ok($calls / 500, '<', 0.05, "in $calls calls");
}
is($erp->sql("SELECT count(*) FROM sale_line l JOIN sale_sale s ON s.id = l.sale WHERE reference LIKE 'C%'"), 1000, 'with their lines');
is(ask("SELECT string_agg(reference || l.sequence, ',' ORDER BY 1) FROM sale_sale s JOIN sale_line l ON l.sale = s.id
	JOIN synchronize_translation t ON t.local_key = l.id AND t.model = (SELECT id FROM synchronize_model WHERE name = 'sale_line')
	WHERE t.remote_key IN (" . $erp->sql("SELECT string_agg(l.id::text, ',') FROM sale_line l JOIN sale_sale s ON s.id = l.sale WHERE reference = 'C77' AND l.sequence = 2") . ")"),
	'C772', 'lines are linked with their own');

# A row that cannot be recognised is not sent
ask("SELECT possync_set_field('sale_sale', 'reference', match => false);
	SELECT possync_set_model('sale_sale', on_unknown => 'create'); SELECT sell('D1', 1)");
like(push_sales(), qr/^ok 0 0 1/, 'without match fields');
like(ask('SELECT message FROM possync_quarantine'),
	qr/rows of "sale_sale" cannot be created at server "erp" without match fields/, 'it says so');
ask("SELECT possync_set_field('sale_sale', 'reference', match => true); SELECT possync_set_model('sale_sale', on_unknown => 'match_create');
	SELECT possync_retry(id) FROM possync_quarantine");
like(push_sales(), qr/^ok 2 /, 'with them');

# Methods that are called for new sales, and verified
my $address = $erp->sql("SELECT a.id FROM party_address a JOIN party_party p ON p.id = a.party WHERE p.code = 'WALKIN'");
ask("ALTER TABLE sale_sale ADD invoice_address integer, ADD shipment_address integer, ADD state text;
	SELECT * FROM possync_add_model('sale_sale', 'erp');
	SELECT possync_set_field('sale_sale', 'state', copy => false);
	SELECT possync_set_model('sale_sale', after_create => '{quote,confirm=confirmed|processing|done}')");

sub sell_there
{
	return ask(join '', map { "BEGIN; SELECT sell('$_', 1); UPDATE sale_sale SET invoice_address = $address, shipment_address = $address WHERE reference = '$_'; COMMIT;" } @_);
}
sell_there('E1', 'E2', 'E3');
is(push_sales(), 'ok 6 0 0', 'three sales');
is($erp->sql("SELECT string_agg(DISTINCT state, ',') FROM sale_sale WHERE reference LIKE 'E%'"), 'processing', 'are confirmed');
is($erp->sql("SELECT count(*) FROM sale_sale WHERE reference LIKE 'E%' AND number IS NOT NULL"), 3, 'and have a number');
ask("SELECT sell('F1', 1)");
sell_there('F2');
like(push_sales(), qr/^ok \d+ \d+ 1$/, 'one that cannot be quoted waits');
like(ask('SELECT message FROM possync_quarantine'), qr/address/i, 'it says why');
is($erp->sql("SELECT string_agg(reference || ' ' || state, ',' ORDER BY reference) FROM sale_sale WHERE reference LIKE 'F%'"),
	'F1 draft,F2 processing', 'the other does not');
ask("UPDATE sale_sale SET invoice_address = $address, shipment_address = $address WHERE reference = 'F1';
	SELECT possync_retry(id) FROM possync_quarantine");
like(push_sales(), qr/^ok/, 'it goes on once it is mended');
is($erp->sql("SELECT string_agg(reference || ' ' || state, ',' ORDER BY reference) FROM sale_sale WHERE reference LIKE 'F%'"),
	'F1 processing,F2 processing', 'both are confirmed, once');
ask("SELECT possync_set_model('sale_sale', after_create => '{quote=done}')");
sell_there('G1');
push_sales();
like(ask('SELECT message FROM possync_quarantine'), qr/a record of sale.sale is in state "quotation" after "quote"/, 'a state that is not the one expected');
like(($till->psql('postgres', "SELECT possync_set_model('sale_sale', after_create => '{no such}')"))[2], qr/invalid value for after_create/, 'no method');

# A cashier's rights are enough to sell, and for no more
$erp->call('model.res.user.create', [ { name => 'Till', login => 'till_17', password => 'Kz7mPq2xWd', company => 1,
	companies => [ [ 'add', [1] ] ],
	groups => [ [ 'add', $erp->call('model.res.group.search', [ [ 'name', '=', 'Sales' ] ], 0, undef, undef) ] ] } ]);
$till->safe_psql('postgres', 'CREATE DATABASE cashier');
$erp->connect_till($till, dbname => 'cashier', user => 'till_17', password => 'Kz7mPq2xWd');
$erp->sales_tables($till, 'cashier');
is($till->safe_psql('cashier', "SELECT sell('H1', 2); SELECT status FROM possync_push('sale_sale')"), "1001\nok", 'a cashier sells');
is($erp->sql("SELECT u.login FROM sale_sale s JOIN res_user u ON u.id = s.create_uid WHERE reference = 'H1'"), 'till_17', 'in his name');
is($till->safe_psql('cashier', "SELECT possync_queue('product_template'); UPDATE product_template SET name = 'mine';
	SELECT rows_left_out FROM possync_push('product_template')"), "product_template\n1", 'and changes no product');
like($till->safe_psql('cashier', 'SELECT message FROM possync_quarantine'), qr/^server "erp": /, 'it says why');

# Rights and names
$erp->connect_till($till, dbname => 'template1', user => 'nobody', password => 'x');
is($till->psql('template1', "SELECT * FROM possync_remote_models('erp')"), 3, 'an unknown user is refused');

done_testing();
