# What a run costs depends on what it has to do: not on how much was done before, or
# waits for something else, nor on what statistics say of that.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', 'autovacuum = off');
my $many = 30000;

sub on_till { return $till->safe_psql('postgres', $_[0]); }

sales_master($master);
sales_till($till, $master->port, first_key => 1);
on_till('ANALYZE');
on_till("SELECT sell('S' || i, NULL, 2) FROM generate_series(1, 20) i");
is(push_sales($till), 'ok', 'sales');

# Held transactions, in a push
on_till(<<"EOC");
INSERT INTO synchronize_quarantine (model, direction, local_key, txid, reason, message, run, retry_at)
SELECT id, 'push', 1, 1, 'error', 'refused', 1, 'infinity' FROM synchronize_model WHERE name = 'sale';
SELECT setval('synchronize_queue_txid_seq', 2000 + $many);
INSERT INTO synchronize_queue (txid, id, model, operation, local_key, image, queued_at)
SELECT 1000 + i, 1, m.id, 'i', 100000000 + i, json_build_object('id', 100000000 + i, 'number', 'H' || i, 'sold_at', now(), 'total', 40), now()
FROM generate_series(1, $many) i, synchronize_model m WHERE name = 'sale';
INSERT INTO synchronize_held SELECT 1000 + i, q.id FROM generate_series(1, $many) i, synchronize_quarantine q;
EOC
on_till("SELECT sell('late', NULL, 2)");
my $start = time;
is(push_sales($till), 'ok', 'a sale behind held ones');
cmp_ok(time - $start, '<', 4, 'does not wait until each was compared with each');
is($master->safe_psql('postgres', q{SELECT number FROM sale WHERE number IN ('late', 'H1')}), 'late', 'and goes alone');

done_testing();
