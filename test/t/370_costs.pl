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
my $few = 1000;

sub on_till { return $till->safe_psql('postgres', $_[0]); }

# Rows that were looked at, once every process has told how many
sub rows_read
{
	my ($table, $ways) = @_;

	$till->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'possync%')}) or die 'a push does not end';
	$ways //= 'seq_tup_read + coalesce(idx_tup_fetch, 0)';
	return on_till("SELECT $ways FROM pg_stat_user_tables WHERE relid = '$table'::regclass");
}

# Rows of the configuration that a poll takes
sub poll_reads
{
	my ($model) = @_;

	return on_till(<<"EOC");
BEGIN;
SELECT status || ' ' || rows_read FROM possync_pull('$model');
SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables WHERE relname ~ '^synchronize_(model|field|child|position)\$';
COMMIT;
EOC
}

# What it takes to look at possync_status
sub status_reads
{
	return on_till(<<'EOC');
BEGIN;
SELECT format('%s %s %s', model, failures, last_success) FROM possync_status WHERE direction = 'pull' ORDER BY model;
SELECT 'reads ' || seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'synchronize_history'::regclass;
COMMIT;
EOC
}

sales_master($master);
sales_till($till, $master->port, first_key => 1);
on_till('ANALYZE');
on_till("SELECT sell('S' || i, NULL, 2) FROM generate_series(1, 20) i");
is(push_sales($till), 'ok', 'sales');

# Translations, where the master refuses a sale
on_till(<<"EOC");
INSERT INTO synchronize_translation (model, decision, run, remote_key, local_key)
SELECT id, 'c', 1, 100000000 + i, 100000000 + i FROM generate_series(1, $many) i, synchronize_model WHERE name = 'sale_line';
EOC
$master->safe_psql('postgres', 'ALTER TABLE sale ADD CHECK (number <> $$bad$$)');
on_till(join "\n", map { "SELECT sell('$_', NULL, 2);" } 'bad', map { "good$_" } 1 .. 400);
my $before = rows_read('synchronize_translation');
is(push_sales($till), 'ok', 'one of many sales is refused');
cmp_ok(rows_read('synchronize_translation') - $before, '<', $many / 3, 'and other translations are not read to forget its keys');
is(on_till('SELECT string_agg(number, $$ $$ ORDER BY number) FROM sale s WHERE NOT EXISTS (SELECT FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model WHERE m.name = $$sale$$ AND t.local_key = s.id)'), 'bad', 'which are forgotten');
is(on_till('SELECT count(*) FROM sale_line l WHERE NOT EXISTS (SELECT FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model WHERE m.name = $$sale_line$$ AND t.local_key = l.id)'), '2', 'with those of its lines, and no others');

# Runs of another tree, in a push
on_till(<<"EOC");
INSERT INTO synchronize_history (model, server, direction, status, started_at, finished_at)
SELECT 'busy', 'hq', 'push', 'ok', now(), now() FROM generate_series(1, $many) i;
EOC
$before = rows_read('synchronize_history');
is(push_sales($till), 'ok', 'a push');
cmp_ok(rows_read('synchronize_history') - $before, '<', $few, 'does not read what other runs left in history');
on_till("INSERT INTO synchronize_history (model, server, direction, status, started_at) VALUES ('sale', 'hq', 'push', 'running', now()), ('sale', 'elsewhere', 'push', 'running', now())");
is(push_sales($till), 'ok', 'another');
is(on_till("SELECT string_agg(server || ' ' || status, ', ' ORDER BY id) FROM synchronize_history WHERE status IN ('running', 'interrupted')"),
	'hq interrupted, elsewhere running', 'finds one that seems to run at its server');

# After a push that was cut off
on_till("SELECT sell('cut', NULL, 2); ALTER DATABASE postgres SET possync.fault = 'exit: push written'");
push_sales($till);
on_till('ALTER DATABASE postgres RESET possync.fault');
is(on_till('SELECT count(*) FROM synchronize_batch'), '1', 'a push is cut off');
$before = rows_read('synchronize_translation');
is(push_sales($till) . on_till('SELECT count(*) FROM synchronize_batch'), 'ok0', 'the next one finds out what has arrived');
cmp_ok(rows_read('synchronize_translation') - $before, '<', $few, 'and does not read what other batches have made');

# The last run of every tree: of one that ran long ago, of one that fails since long
on_till(<<"EOC");
CREATE TABLE quiet (id integer PRIMARY KEY);
CREATE TABLE broken (id integer PRIMARY KEY);
INSERT INTO synchronize_model (name, relation, server, remote, key_columns)
VALUES ('quiet', 'quiet', 'hq', 'public.quiet', '{id}'), ('broken', 'broken', 'hq', 'public.broken', '{id}');
INSERT INTO synchronize_history (id, model, server, direction, status, started_at, finished_at)
OVERRIDING SYSTEM VALUE VALUES (-3, 'quiet', 'hq', 'pull', 'failed', now(), now()), (-2, 'quiet', 'hq', 'pull', 'ok', now(), 'yesterday'),
	(-1, 'broken', 'hq', 'pull', 'ok', now(), 'yesterday');
INSERT INTO synchronize_history (model, server, direction, status, started_at, finished_at, error)
SELECT 'broken', 'hq', 'pull', 'failed', now(), now(), 'no' FROM generate_series(1, $many) i;
EOC
for my $when ('since the table was empty', 'now')
{
	my ($status, $reads) = status_reads() =~ /^(.*)reads (\d+)$/s;
	my $yesterday = on_till("SELECT 'yesterday'::timestamptz");
	is($status, "broken 1 $yesterday\nquiet 0 $yesterday\n", "the last runs, analyzed $when");
	cmp_ok($reads, '<', 100, 'are found without those between');
	on_till('ANALYZE');
}

# What waits, for many trees of one server
on_till(<<'EOC');
DO $$
BEGIN
	FOR i IN 1 .. 50 LOOP
		EXECUTE format('CREATE TABLE tree%s (id integer PRIMARY KEY)', i);
		INSERT INTO synchronize_model (name, relation, server, remote, key_columns)
		VALUES ('tree' || i, ('tree' || i)::regclass, 'hq', 'public.tree', '{id}');
		INSERT INTO synchronize_field (model, name, remote, copy) SELECT max(id), 'id', 'id', true FROM synchronize_model;
		INSERT INTO synchronize_history (model, server, direction, status, started_at)
		VALUES ('tree' || i, 'hq', 'push', 'ok', now());
	END LOOP;
END $$;
EOC
is(on_till(<<'EOC'), '1|51|t', 'is added up once');
SET enable_memoize = off;
BEGIN;
CREATE TEMP TABLE seen AS SELECT min(queued) AS queued, count(*) AS trees FROM possync_status WHERE direction = 'push' AND queued > 0;
SELECT seq_scan + coalesce(idx_scan, 0), trees, queued = (SELECT count(*) FROM synchronize_queue)
FROM pg_stat_xact_user_tables, seen WHERE relid = 'synchronize_queue'::regclass;
COMMIT;
EOC

# Trees of one server, in a poll of one of them
$master->safe_psql('postgres', 'CREATE TABLE tree (id integer PRIMARY KEY)');
is(on_till("SELECT status FROM possync_pull('tree1')"), 'ok', 'one of many trees');
my ($status, $reads) = split /\n/, poll_reads('tree1');
is($status, 'ok 0', 'nothing is new');
cmp_ok($reads, '<', 10, 'and the others are not read to find it');

# What waits for another server, in a push: half of it held
on_till(<<"EOC");
CREATE SERVER away FOREIGN DATA WRAPPER possync_postgres OPTIONS (host '127.0.0.1', port '1');
CREATE TABLE note (id integer PRIMARY KEY);
SELECT FROM possync_add_model('note', server => 'away');
INSERT INTO synchronize_quarantine (model, direction, local_key, txid, reason, message, run, retry_at)
SELECT id, 'push', i, (lane::int8 << 48) + i, 'error', 'refused', 1, 'infinity' FROM generate_series(1, $many, 2) i, synchronize_model WHERE name = 'note';
INSERT INTO synchronize_queue (txid, id, model, operation, local_key, image, queued_at)
SELECT (lane::int8 << 48) + i, 1, id, 'i', i, json_build_object('id', i), now() FROM generate_series(1, $many) i, synchronize_model WHERE name = 'note';
INSERT INTO synchronize_held SELECT q.txid, 1, m.id, q.local_key, q.id FROM synchronize_quarantine q JOIN synchronize_model m ON m.id = q.model WHERE m.name = 'note';
EOC
on_till(join "\n", map { "SELECT sell('beside$_', NULL, 2);" } 1 .. 300);
my @tables = qw(synchronize_queue synchronize_held synchronize_quarantine);
my %before = map { $_ => rows_read($_) } @tables;
is(push_sales($till), 'ok', 'sales beside what waits for another server');
cmp_ok(rows_read($_) - $before{$_}, '<', $many / 2, "do not pass $_") for @tables;
on_till("DELETE FROM synchronize_queue q USING synchronize_model m WHERE m.id = q.model AND m.name = 'note'; SELECT possync_remove_model('note')");

# Held transactions, in a push
on_till(<<"EOC");
UPDATE synchronize_quarantine SET retry_at = 'infinity';
SELECT setval('synchronize_queue_txid_seq', 2000 + $many);
INSERT INTO synchronize_queue (txid, id, model, operation, local_key, image, queued_at)
SELECT (m.lane::int8 << 48) + 1000 + i, 1, m.id, 'i', 100000000 + i, json_build_object('id', 100000000 + i, 'number', 'H' || i, 'sold_at', now(), 'total', 40), now()
FROM generate_series(1, $many) i, synchronize_model m WHERE name = 'sale';
INSERT INTO synchronize_held SELECT e.txid, e.id, e.model, e.local_key, q.id FROM synchronize_queue e, synchronize_quarantine q WHERE e.local_key > 100000000 AND q.direction = 'push';
EOC
$till->append_conf('postgresql.conf', 'possync.batch_entries = 1');
$till->reload;
on_till(join "\n", map { "SELECT sell('late$_', NULL, 2);" } 1 .. 20);
@tables = qw(synchronize_queue synchronize_held);
%before = map { $_ => rows_read($_) } @tables;
my $start = time;
is(push_sales($till), 'ok', 'sales behind held ones');
cmp_ok(time - $start, '<', 4, 'do not wait until each was compared with each');
is($master->safe_psql('postgres', q{SELECT count(*), max(number) FROM sale WHERE number ~ '^(late|H)'}), '20|late9', 'and go alone');
cmp_ok(rows_read($_) - $before{$_}, '<', 6 * $many, "and not each of them passes $_") for @tables;

# Jobs of one server, in a run of one of them
$till->append_conf('postgresql.conf', "shared_preload_libraries = 'possync'");
$till->restart;
on_till("SELECT possync_schedule('tree' || i, 'pull', every => '2 seconds', jitter => '2 seconds') FROM generate_series(1, 50) i");
my $jobs = q{SELECT n_tup_upd, seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'synchronize_schedule'};
my $written = q{(SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'synchronize_schedule')};
$till->poll_query_until('postgres', "SELECT count(DISTINCT model) = 50 FROM synchronize_history WHERE model LIKE 'tree%' AND direction = 'pull' AND status = 'ok'") or die 'jobs do not run';
my ($updates, $read) = split /\|/, on_till($jobs);
$till->poll_query_until('postgres', "SELECT $written > $updates + 300") or die 'jobs do not run any more';
my ($later, $more) = split /\|/, on_till($jobs);
cmp_ok(($more - $read) / ($later - $updates), '<', 5, 'the others are not read to run one');
is(on_till("SELECT max(n) FROM (SELECT count(*) FILTER (WHERE runs > 1) AS n FROM synchronize_history WHERE model LIKE 'tree%' AND direction = 'pull' GROUP BY model) h"), '1', 'and what each finds nothing in shares a row of history');
cmp_ok(on_till("SELECT count(*) FROM synchronize_history WHERE model LIKE 'tree%' AND direction = 'pull' AND rows_read = 0"), '<=', 110, 'for all of them');

done_testing();
