# An initial load by the schedule is committed in parts: it goes on where it was
# interrupted, and what changes at the master meanwhile is not missed.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "shared_preload_libraries = 'possync'\nmax_worker_processes = 16\npossync.part_rows = 1000\npossync.retry_max = 1");

sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub becomes
{
	my ($sql, $name) = @_;
	my $end = time + 60;
	my $got = '';
	while (time < $end)
	{
		my ($status, $out) = $till->psql('postgres', $sql);
		$got = $out // '';
		last if $got eq 't';
		usleep(20_000);
	}
	is($got, 't', $name);
	return;
}

my $schema = <<'EOC';
CREATE TABLE unit (id serial PRIMARY KEY, symbol text NOT NULL UNIQUE, updated_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE category (id serial PRIMARY KEY, code text NOT NULL UNIQUE, parent integer REFERENCES category, updated_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE product (id serial PRIMARY KEY, sku text NOT NULL UNIQUE, unit integer NOT NULL REFERENCES unit, category integer REFERENCES category, price numeric, updated_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE listing (region text, place integer, product integer NOT NULL REFERENCES product ON DELETE CASCADE, PRIMARY KEY (region, place));
EOC
on_master($schema . <<'EOC');
INSERT INTO unit (symbol) SELECT 'U' || i FROM generate_series(1, 10) i;
INSERT INTO category (code, parent) SELECT 'C' || i, nullif(i / 2, 0) FROM generate_series(1, 1500) i;
INSERT INTO product (sku, unit, category, price) SELECT 'P' || i, 1 + i % 10, 1 + i % 1500, i FROM generate_series(1, 6500) i;
INSERT INTO listing SELECT 'R' || i % 7, i, i FROM generate_series(1, 2500) i;
UPDATE product SET updated_at = now() - id * interval '1 minute';
ANALYZE unit, product;
GRANT pg_read_all_stats TO clerk;
EOC
on_till($schema . "SELECT setval('product_id_seq', 50000)");
on_till("INSERT INTO unit (symbol) VALUES ('U3'); INSERT INTO product (sku, unit, price) VALUES ('P5', 1, 0)");
connect_till($till, $master->port);
on_till("SELECT possync_add_model('product', server => 'hq')");

my $content = "SELECT p.sku, u.symbol, c.code, b.code, p.price FROM product p JOIN unit u ON u.id = p.unit LEFT JOIN category c ON c.id = p.category LEFT JOIN category b ON b.id = c.parent ORDER BY p.sku";
my $listings = 'SELECT l.region, l.place, p.sku FROM listing l JOIN product p ON p.id = l.product ORDER BY 1, 2';

# A part, then the load is stopped: a product that cannot come in yet
on_till("CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN IF NEW.sku = 'P3500' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END \$\$; CREATE TRIGGER stop BEFORE INSERT ON product FOR EACH ROW EXECUTE FUNCTION stop()");
on_till("SELECT possync_schedule('product', 'pull', every => '1 second')");
becomes('SELECT count(*) >= 3000 FROM product', 'parts of the load are there');
is(on_till('SELECT count(*) FROM listing'), '0', 'what depends on them waits');
is(on_till('SELECT count(DISTINCT loaded_to) FROM synchronize_position WHERE loaded_to IS NOT NULL'), '1', 'how far it is stands there');
is(on_till("SELECT complete_up_to IS NULL FROM possync_status WHERE direction = 'pull'"), 't', 'nothing is complete');
my $there = on_till('SELECT count(*) FROM product');

# Meanwhile at the master: changed, new and of a new parent, before and after
on_master("UPDATE product SET price = -1, updated_at = clock_timestamp() WHERE sku IN ('P1', 'P100', 'P6000')");
on_master("INSERT INTO unit (symbol) VALUES ('NEW'); INSERT INTO product (id, sku, unit) SELECT -i, 'N' || i, currval('unit_id_seq') FROM generate_series(1, 3) i; INSERT INTO product (sku, unit) SELECT 'L' || i, currval('unit_id_seq') FROM generate_series(1, 3) i");

# Killed; goes on
my $pid = on_till("SELECT pid FROM possync_processes() WHERE kind = 'runner'");
is(on_till("SELECT pg_terminate_backend($pid)"), 't', 'the load is cut off');
on_till('DROP TRIGGER stop ON product');
becomes("SELECT count(*) = 2500 FROM listing", 'and goes on');
becomes("SELECT state = 'waiting' AND complete_up_to IS NOT NULL FROM possync_status WHERE direction = 'pull'", 'until it is complete');
becomes("SELECT count(*) = 6506 FROM product WHERE sku ~ '.'", 'with all that is new');
becomes("SELECT count(*) = 3 FROM product WHERE price = -1", 'and changed');
becomes('SELECT count(*) = 0 FROM possync_quarantine', 'nothing is left out');
is_same($master, $till, $content, 'products, units, categories');
is_same($master, $till, $listings, 'a table without change columns, of a composite key');
is(on_till("SELECT count(*) FROM synchronize_position WHERE loaded_to IS NOT NULL"), '0', 'no load is going on');
cmp_ok(on_till("SELECT max((models -> 'product' ->> 'read')::integer) FROM synchronize_history"), '<=', 1000, 'never more than a part was read at once');
is(on_till("SELECT sum((models -> 'product' ->> 'read')::integer) <= 6506 + 20 FROM synchronize_history WHERE status = 'ok'"), 't', 'and no part that was there twice');
is(on_till("SELECT count(*) FROM synchronize_history WHERE status = 'interrupted'"), '1', 'history knows of the one that was cut off');
on_till("SELECT possync_unschedule('product')");

# Somebody calls a pull in the middle of a load
on_till("SELECT possync_remove_model(m, forget => true) FROM unnest('{listing,product,category,unit}'::text[]) m; TRUNCATE listing, product, category, unit CASCADE; DELETE FROM synchronize_history");
on_till("SELECT possync_add_model('product', server => 'hq')");
on_till("CREATE TRIGGER stop BEFORE INSERT ON product FOR EACH ROW EXECUTE FUNCTION stop()");
on_till("SELECT possync_schedule('product', 'pull', every => '1 second')");
becomes('SELECT count(*) >= 3000 FROM product', 'another load');
on_till("SELECT possync_unschedule('product'); DROP TRIGGER stop ON product") if on_till("SELECT pg_terminate_backend(pid) FROM possync_processes() WHERE kind = 'runner'");
is(on_till("SELECT status FROM possync_pull('product')"), 'ok', 'a pull that is called');
is_same($master, $till, $content, 'ends it');
is_same($master, $till, $listings, 'with all that depends');
is(on_till("SELECT count(*) FROM synchronize_position WHERE loaded_to IS NOT NULL"), '0', 'it is over');

done_testing();
