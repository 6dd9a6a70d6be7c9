# What differs between both sides is found with little traffic, told, and mended,
# for all kinds of keys, types and references; and a table without change column is
# read only where it differs.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Pair;
use Possync::Sales;
use Test::More;

my ($master, $till) = pair();

# Keys that are numbers, texts and several columns; references of all kinds
$_->safe_psql('postgres', <<'EOC') for $master, $till;
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN amount AS numeric(10,2);
CREATE TABLE kind (code char(6) PRIMARY KEY, name text);
CREATE TABLE region (country text, number integer, name text, PRIMARY KEY (country, number));
CREATE TABLE thing (id serial PRIMARY KEY, code text NOT NULL UNIQUE, kind char(6) REFERENCES kind,
	country text, number integer, twin integer REFERENCES thing, n numeric, a amount, f float8, t timestamptz, d date, i interval,
	j jsonb, js json, arr text[], b bytea, m mood, u uuid, c char(9), v varchar(40), flag boolean,
	FOREIGN KEY (country, number) REFERENCES region);
EOC
there(<<'EOC');
ALTER TABLE thing ALTER v TYPE text, ALTER f TYPE real;
INSERT INTO kind SELECT 'K' || i, 'kind ' || i FROM generate_series(1, 9) i;
INSERT INTO region SELECT (ARRAY['de', 'f"r', 'n\l'])[1 + i % 3], i, 'region ' || i FROM generate_series(1, 30) i;
INSERT INTO thing SELECT i, 'T' || i, 'K' || 1 + i % 9, r.country, r.number, CASE WHEN i > 10 THEN i / 2 END,
	CASE i % 4 WHEN 0 THEN i / 4.0 WHEN 1 THEN 'NaN' WHEN 2 THEN i END, i / 3.0, i / 7.0, '2026-01-01 00:00+00'::timestamptz + i * interval '1 hour', date '2026-01-01' + i, i * interval '1 min',
	jsonb_build_object('a', i, 'b', 1.50), '{ "x":  1}', ARRAY['x', NULL, '"'], decode('00ff', 'hex'), 'glad', gen_random_uuid(), 'pad', E'tab\t\\', i % 2 = 0
FROM generate_series(1, 3000) i LEFT JOIN region r ON r.number = i % 40;
ANALYZE;
EOC
here(<<'EOC');
ALTER SEQUENCE thing_id_seq RESTART 900000;
SET datestyle = 'German'; SET timezone = 'Asia/Tokyo'; SET extra_float_digits = 0;
SELECT * FROM possync_add_model('thing', server => 'hq');
EOC

my $all = "SELECT t.code, t.kind, t.country, t.number, o.code, t.n, t.a, t.f::real, t.t, t.d, t.i, t.j, t.js::text, t.arr, t.b, t.m, t.u, t.c, t.v, t.flag FROM thing t LEFT JOIN thing o ON o.id = t.twin ORDER BY 1";
my $read = "concat_ws('|', status, rows_read, rows_created, rows_updated, rows_deleted, rows_left_out, error)";

sub compared
{
	my ($expected, $name) = @_;
	my ($status, $out, $err) = $till->psql('postgres', <<'EOC');
SET datestyle = 'German'; SET timezone = 'Asia/Tokyo'; SET extra_float_digits = 0; SET intervalstyle = 'iso_8601';
SELECT string_agg(concat_ws(' ', model_name, difference, remote_key, fields), E'\n' ORDER BY model_name, difference, remote_key) FROM possync_compare('thing')
EOC
	is($out, $expected, $name) || diag($err);
	return;
}

is(here("SELECT $read FROM possync_pull('thing')"), 'ok|3039|3039|0|0|0', 'all is here');
is_same($master, $till, $all, 'the same');
compared('', 'and nothing differs');
my $bytes = here("SELECT bytes_received FROM possync_pull('thing')");
is(here("SELECT $read FROM possync_pull('thing')"), 'ok|39|0|0|0|0', 'a table without change column is not read again, but for small ones');

# Each kind of difference, told
there(<<'EOC');
UPDATE thing SET kind = 'K5', n = 7.00 WHERE code = 'T100';
UPDATE thing SET twin = NULL WHERE code = 'T101';
UPDATE thing SET country = NULL, number = NULL WHERE code = 'T121';
UPDATE thing SET arr = '{}' WHERE code = 'T102';
DELETE FROM thing WHERE code = 'T2900';
INSERT INTO thing (id, code) VALUES (5000, 'T5000');
UPDATE region SET name = 'elsewhere' WHERE number = 3;
EOC
my $lost = here("DELETE FROM thing WHERE code = 'T2901' RETURNING code");
my $told = here("SELECT string_agg(concat_ws(' ', model_name, difference, remote_key, CASE difference WHEN 'different' THEN fields::text END), E'\\n' ORDER BY model_name, difference, remote_key) FROM possync_compare('thing')");
is($told, <<'EOC' =~ s/\n\z//r, 'every difference is told');
region different {de,3} {"name": {"here": "region 3", "there": "elsewhere"}}
thing different 100 {"n": {"here": "25.0000000000000000", "there": "7.00"}, "kind": {"here": "K2", "there": "K5"}}
thing different 101 {"twin": {"here": "50", "there": null}}
thing different 102 {"arr": {"here": "{x,NULL,\"\\\"\"}", "there": "{}"}}
thing different 121 {"number": {"here": "1", "there": null}, "country": {"here": "f\"r", "there": null}}
thing lost here 2901
thing missing here 5000
thing missing there 2900
EOC
like(here("SELECT fields FROM possync_compare('thing') WHERE difference = 'missing here'"), qr/"code": \{"there": "T5000"\}/, 'a missing row with what it has');

# A pull reads these, and nothing else.
is(here("SELECT $read FROM possync_pull('thing')"), 'ok|45|2|5|0|0', 'a pull reads only rows that differ');
is(here("SELECT string_agg(difference || ' ' || remote_key, ',') FROM possync_compare('thing')"), 'missing there 2900', 'what is left is what on_delete ignores');
here("SELECT possync_set_model('thing', on_delete => 'delete')");
is(here("SELECT $read FROM possync_pull('thing')"), 'ok|39|0|0|1|0', 'or not');
is_same($master, $till, $all, 'the same again');
compared('', 'nothing differs any more');
cmp_ok(here("SELECT bytes_received FROM possync_pull('thing')"), '<', 20_000, 'a pull that finds nothing is small');

# More than can be named one by one is read as a whole.
there("INSERT INTO thing (id, code) SELECT i, 'X' || i FROM generate_series(10001, 23000) i; ANALYZE");
is(here("SELECT $read FROM possync_pull('thing')"), 'ok|16039|13000|0|0|0', 'thirteen thousand new rows');
is_same($master, $till, 'SELECT count(*), min(code) FROM thing', 'are here');

# repair: first what, then how
there("ALTER TABLE thing ADD changed timestamptz NOT NULL DEFAULT now(); CREATE INDEX ON thing (changed)");
here("SELECT possync_set_model('thing', change_columns => '{changed}'); SELECT possync_pull('thing')");
there("UPDATE thing SET flag = NOT flag WHERE code IN ('T7', 'T8')");
is(here("SELECT rows_updated FROM possync_pull('thing')"), 2, 'a change that the change column does not tell is found by its row version');
my $kept = Possync::Session->new($master);
$master->safe_psql('postgres', "UPDATE thing SET flag = NOT flag WHERE code = 'T7'");
here("SELECT possync_pull('thing')");
here("UPDATE thing SET flag = NOT flag WHERE code IN ('T8', 'T9')");
is(here("SELECT rows_updated FROM possync_pull('thing')"), 0, 'a change here is not seen by a pull');
is(here("SELECT string_agg(remote_key || ' ' || action, ', ' ORDER BY remote_key) FROM possync_repair('thing')"), '8 read again, 9 read again', 'but by repair');
compared(here("SELECT string_agg(concat_ws(' ', model_name, difference, remote_key, fields), E'\\n' ORDER BY remote_key) FROM possync_compare('thing')"), 'which does nothing at first');
here("SELECT count(*) FROM possync_repair('thing', dry_run => false)");
compared('', 'and then mends it');
is_same($master, $till, $all, 'as the master has it');

# rights: who may not read a table may not compare it
here("CREATE ROLE guest; GRANT USAGE ON FOREIGN SERVER hq TO guest");
like(($till->psql('postgres', "SET ROLE guest; SELECT * FROM possync_compare('thing')"))[2], qr/permission denied|user mapping not found/, 'a stranger may not');
is(here('SET ROLE guest; SELECT count(*) FROM _possync_linked'), 0, 'nor see what is linked');
like(($till->psql('postgres', "SELECT * FROM possync_compare('thing', 'sideways')"))[2], qr/invalid direction: "sideways".*Allowed are pull and push/s, 'a wrong direction');
like(($till->psql('postgres', "SELECT * FROM possync_compare('nothing')"))[2], qr/model "nothing" does not exist/, 'a wrong name');

# What is pushed: only ours counts, and what was lost at either side
$_->safe_psql('postgres', 'CREATE DATABASE shop') for $master, $till;
sales_master($master, dbname => 'shop');
sales_till($till, $master->port, dbname => 'shop');
$till->safe_psql('shop', "ALTER SERVER hq OPTIONS (SET dbname 'shop')");
sub in_shop { return $till->safe_psql('shop', $_[0]) }
sub hq { return $master->safe_psql('shop', $_[0]) }
my $sold = "SELECT string_agg(concat_ws(' ', model_name, difference), ', ' ORDER BY 1) FROM (SELECT model_name, difference || ' ' || count(*) AS difference FROM possync_compare('sale') WHERE synchronized_by = 'push' GROUP BY model_name, possync_compare.difference) c";

in_shop("SELECT sell('T1-' || i, 'C' || i % 20, 4) FROM generate_series(1, 200) i");
is(push_sales($till, 'shop'), 'ok', 'sales are pushed');
hq("INSERT INTO sale (number, total) SELECT 'T2-' || i, 1 FROM generate_series(1, 300) i");
is(in_shop($sold), '', 'the sales of others are no difference');
in_shop("SELECT sell('T1-unsent', NULL, 2)");
like(in_shop("SELECT string_agg(DISTINCT difference || queued, '') FROM possync_compare('sale') WHERE synchronized_by = 'push'"), qr/^not senttrue$/, 'what waits to be pushed says so');
is(push_sales($till, 'shop'), 'ok', 'pushed');

# The day's takings on both sides
my $takings = q(SELECT string_agg(concat_ws(' ', model_name, measure, equal, here - there), ', ' ORDER BY 1) FROM possync_control('sale', condition => 'p.sold_at >= current_date - 1') WHERE NOT equal);
is(in_shop($takings), '', 'the takings are the same on both sides');
is(in_shop(q(SELECT here = (SELECT sum(amount) FROM payment) AND here > 0 FROM possync_control('sale') WHERE model_name = 'payment' AND measure = 'amount')), 't', 'and those that were made');
is(in_shop(q(SELECT sum(here) + sum(there) FROM possync_control('sale', condition => 'p.sold_at < current_date - 1'))), 0, 'yesterday there were none');

# The master is an older copy; the till loses its queue.
hq("DELETE FROM sale WHERE number IN ('T1-5', 'T1-6'); UPDATE payment SET amount = amount + 1 WHERE sale = (SELECT id FROM sale WHERE number = 'T1-7') AND kind = 'cash'");
in_shop("SELECT sell('T1-lost', 'C1', 2)");
in_shop('DELETE FROM synchronize_queue');
my $lost_amount = in_shop(q(SELECT sum(total) FROM sale WHERE number IN ('T1-5', 'T1-6', 'T1-lost')));
is(in_shop(q(SELECT string_agg(concat_ws(' ', model_name, measure, trim_scale(here - there)), ', ' ORDER BY model_name, measure) FROM possync_control('sale', condition => 'p.sold_at >= current_date - 1') WHERE NOT equal AND measure IN ('rows', 'amount', 'total'))),
	in_shop("SELECT format('payment amount %s, payment rows 6, sale rows 3, sale total %s, sale_line rows 10', trim_scale($lost_amount - 1), trim_scale($lost_amount))"), 'what is missing is told in money');
is(in_shop($sold), 'payment different 1, payment missing there 4, payment not sent 2, sale missing there 2, sale not sent 1, sale_line missing there 8, sale_line not sent 2', 'all of that is found');
is(in_shop("SELECT string_agg(DISTINCT action, ', ' ORDER BY action) FROM possync_repair('sale')"), 'sent again, sent as new', 'and can be mended');
is(in_shop("SELECT count(*) FROM possync_repair('sale', condition => 'p.number = ''T1-5''')"), 7, 'or only a part of it');
in_shop("SELECT count(*) FROM possync_repair('sale', dry_run => false)");
is(push_sales($till, 'shop'), 'ok', 'the next push sends it');
is(in_shop($sold), '', 'nothing differs then');
is(in_shop($takings), '', 'the takings are the same again');
is(hq($sales) =~ s/^T2.*\n?//mgr =~ s/\n\z//r, in_shop($sales), 'the master has the sales of the till');
is(hq($doubled), '', 'once');
is(hq("SELECT string_agg(number, '') FROM ($broken) b WHERE number !~ '^T2'") , '', 'and whole');

done_testing();
