# What a pull from a Tryton server costs beside a client that reads the same pages
# and does nothing with them: POSSYNC_BENCH=rows prints it, without that nothing is
# measured.

use strict;
use warnings FATAL => 'all';

use HTTP::Tiny;
use Possync;
use Possync::Tryton;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $rows = $ENV{POSSYNC_BENCH};
plan skip_all => 'POSSYNC_BENCH is not set' if !$rows;

my $erp = Possync::Tryton->new('erp');
my $till = Possync->cluster('till');
my @fields = qw(_timestamp default_uom name code type active consumable);

$erp->sql("INSERT INTO product_template (name, code, type, active, consumable, default_uom, create_date, create_uid)
	SELECT 'Product number ' || i, 'C' || i, 'goods', true, false, 1, now() - interval '1 day', 1 FROM generate_series(1, $rows) i;
	ANALYZE product_template");

sub till_database
{
	my ($name) = @_;
	$till->safe_psql('postgres', "CREATE DATABASE $name");
	$erp->connect_till($till, dbname => $name);
	$till->safe_psql($name, <<'EOC');
CREATE TABLE product_uom_category (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE product_uom (id serial PRIMARY KEY, name text NOT NULL, category integer NOT NULL REFERENCES product_uom_category);
CREATE TABLE product_template (id serial PRIMARY KEY, name text NOT NULL, code text, type text,
	active boolean, consumable boolean, default_uom integer NOT NULL REFERENCES product_uom);
SELECT * FROM possync_add_model('product_template', 'erp');
EOC
	# logging in and describing is not what is measured
	my $session = Possync::Session->new($till, dbname => $name);
	$session->run("SELECT * FROM possync_pull('product_uom')");
	$session->run("SELECT * FROM possync_pull('product_template', dry_run => true)");
	return $session;
}

# The bodies of all pages, made beforehand
my @ids = split /\n/, $erp->sql('SELECT id FROM product_template ORDER BY id');
my @bodies;
for (my $i = 0; $i < @ids; $i += 1000)
{
	my @domain = $i == 0 ? () : ([ 'id', '>', 0 + $ids[ $i - 1 ] ]);
	push @bodies, JSON::PP->new->encode({ id => 1, method => 'model.product.template.search_read',
		params => [ \@domain, 0, 1000, [ [ 'id', 'ASC' ] ], [ @fields, 'id' ],
			{ company => 1, language => 'en', active_test => JSON::PP::false } ] });
}
$erp->call('model.product.template.search_count', []);

sub bare
{
	my $http = HTTP::Tiny->new(timeout => 300);
	my ($start, $bytes) = (time, 0);
	for my $body (@bodies)
	{
		my $answer = $http->post('http://127.0.0.1:' . $erp->port . '/shop/',
			{ headers => { 'Content-Type' => 'application/json', Authorization => $erp->{authorization} }, content => $body });
		die $answer->{content} if !$answer->{success} || $answer->{content} =~ /"error"/;
		$bytes += length $answer->{content};
	}
	return (time - $start, $bytes);
}

my (@bare, @first, @again);
for my $round (1 .. 4)
{
	my $session = till_database("till$round");
	for my $times (\@first, \@again)
	{
		push @bare, (bare())[0];
		my $start = time;
		my ($out) = $session->run("SELECT status || ' ' || (models->'product_template'->>'read')"
			  . " FROM possync_pull('product_template', \"full\" => true)");
		push @$times, time - $start;
		is($out, 'ok ' . @ids, 'a pull of all');
	}
}

sub least { my ($least) = sort { $a <=> $b } @_; return $least }

diag(sprintf '%d rows: bare %.2f s; first pull %.2f s, %.2f times that; again %.2f s, %.2f times',
	scalar @ids, least(@bare), least(@first), least(@first) / least(@bare), least(@again), least(@again) / least(@bare));
cmp_ok(least(@first) / least(@bare), '<', 1.15, 'a first pull costs little more');
cmp_ok(least(@again) / least(@bare), '<', 1.15, 'nor do rows that are the same');

done_testing();
