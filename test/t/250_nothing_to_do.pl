# A pull that finds no change writes nothing but its row of history: no row
# version, no index entry, no WAL of any other table, no other sequence.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "wal_level = replica\nautovacuum = off\ncheckpoint_timeout = 1h\nfull_page_writes = off\nbgwriter_lru_maxpages = 0\n");

shop($master, products => 300, first_key => 1000001, office => 'on');
shop($till, products => 20);
connect_till($till, $master->port);

# A table without change column is compared row by row, also one whose row
# stays out for ever, and one with types that are equal in more than one form.
$_->safe_psql('postgres', <<'EOC') for $master, $till;
CREATE TABLE odd (id serial PRIMARY KEY, code text NOT NULL UNIQUE, n numeric, f float8, t text COLLATE "C", d interval, c char(9), j jsonb, a int[], b bytea, m money, toast text);
CREATE TABLE doubtful (id serial PRIMARY KEY, name text);
EOC
$master->safe_psql('postgres', <<'EOC');
INSERT INTO odd (code, n, f, t, d, c, j, a, b, m, toast)
VALUES ('1', 1.0, 'NaN', 'x', '24 hours', 'y', '{"b": 1, "a": 1.0}', '{1,NULL}', '\x00ff', '1.50', repeat('long', 5000)),
	('2', 'NaN', '-0', NULL, '1 day', NULL, 'null', '[0:1]={1,2}', '', '-0.01', ''),
	('3', 1.00, 0, '', '-1 mon', '', '[]', '{}', NULL, NULL, NULL);
INSERT INTO doubtful (name) VALUES ('twice'), ('once');
EOC
$till->safe_psql('postgres', <<'EOC');
INSERT INTO doubtful (name) VALUES ('twice'), ('twice');
CREATE EXTENSION pg_walinspect;
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT * FROM possync_add_model('price_list', server => 'hq');
SELECT * FROM possync_add_model('odd', server => 'hq');
SELECT * FROM possync_add_model('doubtful', server => 'hq');
SELECT possync_set_field('unit', 'symbol', match => true);
SELECT possync_set_field('doubtful', 'name', match => true);
SELECT possync_set_model('doubtful', on_unknown => 'match');
EOC

my @models = qw(product price_list odd doubtful);
my $session = Possync::Session->new($till);

sub pull
{
	return map { ($session->run("SELECT status FROM possync_pull('$_')"))[0] } @models;
}

sub counters
{
	return $till->safe_psql('postgres', <<'EOC');
SELECT relname, n_tup_ins, n_tup_upd, n_tup_del, n_dead_tup FROM pg_stat_user_tables
WHERE relname <> 'synchronize_history' ORDER BY relname
EOC
}

sub sequences
{
	return $till->safe_psql('postgres', <<'EOC');
SELECT sequencename, last_value FROM pg_sequences WHERE sequencename <> 'synchronize_history_id_seq' ORDER BY 1
EOC
}

is(join(' ', pull()), 'ok ok ok ok', 'first pull') for 1 .. 2;
is($till->safe_psql('postgres', "SELECT string_agg(reason, ' ' ORDER BY id) FROM synchronize_quarantine"), 'ambiguous', 'one row is left out');
# positions come to rest a moment after the last change
sleep 1;
pull() for 1 .. 3;

for my $kind ('the same session', 'a new session')
{
	if ($kind eq 'a new session')
	{
		$session->quit;
		$session = Possync::Session->new($till);
	}
	$till->safe_psql('postgres', "VACUUM; CHECKPOINT; SELECT pg_stat_force_next_flush()");
	$session->run('SELECT pg_stat_force_next_flush()');
	my @before = (content($till), counters(), sequences());
	my $start = $till->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
	is(join(' ', pull()), 'ok ok ok ok', "$kind: nothing to do");
	my $end = $till->safe_psql('postgres', 'SELECT pg_switch_wal(); SELECT pg_current_wal_insert_lsn()') =~ s/\n.*//r;
	$session->run('SELECT pg_stat_force_next_flush()');
	is(content($till), $before[0], "$kind: no row version is new");
	is(counters(), $before[1], "$kind: no row was counted as written");
	is(sequences(), $before[2], "$kind: no sequence was asked");

	# what the log says was touched
	my $records = $till->safe_psql('postgres', <<"EOC");
SELECT string_agg(DISTINCT coalesce(c.relname, r.resource_manager || ' ' || r.record_type) COLLATE "C", ', ')
FROM pg_get_wal_records_info('$start', '$end') r
LEFT JOIN LATERAL regexp_matches(r.block_ref, 'rel \\d+/\\d+/(\\d+)', 'g') m ON true
LEFT JOIN pg_class c ON c.relfilenode = m[1]::oid
WHERE r.resource_manager NOT IN ('Standby', 'XLOG') AND r.record_type <> 'PRUNE'
EOC
	is($records, 'Transaction COMMIT, synchronize_history, synchronize_history_id_seq, synchronize_history_last, synchronize_history_pkey',
		"$kind: the log has nothing but history");
}

# And a dry run not even that
my $all = $till->safe_psql('postgres', 'SELECT last_value FROM synchronize_history_id_seq');
my $before = content($till);
$master->safe_psql('postgres', "UPDATE product SET cost_price = 9; INSERT INTO odd (code) VALUES ('9'); DELETE FROM doubtful WHERE name = 'once'");
my $start = $till->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
$session->run("SELECT status FROM possync_pull('$_', dry_run => true)") for @models;
is($till->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn() - $$' . $start . '$$'), '0', 'a dry run writes no log');
is(content($till), $before, 'nor rows');
is($till->safe_psql('postgres', 'SELECT last_value FROM synchronize_history_id_seq'), $all, 'nor takes a number');

# Only what differs is written
$session->run('SELECT pg_stat_force_next_flush()');
$master->safe_psql('postgres', "UPDATE template SET updated_at = now(); UPDATE template SET list_price = 7 WHERE code = 'T000003'; UPDATE odd SET n = 2 WHERE code = '2'");
$till->safe_psql('postgres', 'UPDATE template SET updated_at = now() WHERE false');
my $rows = sub { return $till->safe_psql('postgres', "SELECT code, ctid, xmin FROM template WHERE code <> 'T000003' UNION ALL SELECT code, ctid, xmin FROM odd WHERE code <> '2' AND code <> '9' ORDER BY 1") };
$till->safe_psql('postgres', "SELECT possync_set_field('template', 'updated_at', copy => false)");
$before = $rows->();
is(join(' ', pull()), 'ok ok ok ok', 'a little to do');
is($rows->(), $before, 'other rows are not touched');
is($till->safe_psql('postgres', "SELECT list_price FROM template WHERE code = 'T000003'"), '7.00', 'the changed ones are');

$session->quit;
done_testing();
