# What was found to break the change log: savepoints, deletes that wait or came before
# it, partitions, a standby, rights.

use strict;
use warnings FATAL => 'all';
use Possync;
use Test::More;
my $master = Possync->cluster('master', "wal_level = replica\nmax_wal_senders = 3");
my $till = Possync->cluster('till');
connect_till($till, $master->port);
sub on_master { return $master->safe_psql('postgres', $_[0]) }
sub on_till { return $till->safe_psql('postgres', $_[0]) }
my @t = qw(sub trunc susp late part kept);
for my $node ($master, $till)
{
	for (@t) {
		next if $_ eq 'part';
		$node->safe_psql('postgres', "CREATE TABLE $_ (id integer PRIMARY KEY, n integer, updated_at timestamptz NOT NULL DEFAULT now()); CREATE INDEX ON $_ (updated_at)");
	}
	$node->safe_psql('postgres', "CREATE TABLE part (id integer PRIMARY KEY, n integer) PARTITION BY RANGE (id); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (1) TO (5000); CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (5000) TO (20000)");
}
on_master('CREATE EXTENSION possync');
on_master("INSERT INTO $_ (id, n) SELECT i, i FROM generate_series(1, 9000) i") for @t;
on_master('ANALYZE');
$_ ne 'late' && on_master("SELECT possync_log('$_')") for @t;
on_till("SELECT * FROM possync_add_model('$_', server => 'hq'); SELECT possync_set_model('$_', on_delete => 'delete')") for @t;
on_till("SELECT possync_set_model('$_', change_columns => '{}')") for qw(sub trunc susp kept);
my $counts = "concat_ws('|', status, rows_read, rows_created, rows_updated, rows_deleted, rows_left_out, error)";
sub pull { my ($m, $set) = @_; my ($s, $o, $e) = $till->psql('postgres', ($set // '') . "SELECT $counts FROM possync_pull('$m')"); return $o }
sub same { my ($t, $name) = @_; is(on_till("SELECT count(*), sum(n) FROM $t"), on_master("SELECT count(*), sum(n) FROM $t"), $name); }
for (@t) { pull($_); pull($_) }


on_master(<<'EOC');
BEGIN;
UPDATE sub SET n = 100000 WHERE id = 1;
DELETE FROM sub WHERE id = 2;
SAVEPOINT s;
UPDATE sub SET n = n + 1 WHERE id > 10;
ROLLBACK TO s;
COMMIT;
EOC
pull('sub'); same('sub', 'keys noted before a savepoint');
on_till("SET possync.compare_interval = 0; SELECT possync_pull('sub')"); same('sub', 'even with compare_interval 0');
on_master("BEGIN; UPDATE trunc SET n = 100000 WHERE id = 1; DELETE FROM trunc WHERE id = 2; SAVEPOINT s; TRUNCATE trunc; ROLLBACK TO s; COMMIT");
pull('trunc'); same('trunc', 'TRUNCATE rolled back to savepoint');


on_master("DELETE FROM susp WHERE id <= 5000");
pull('susp'); pull('susp', 'SET possync.delete_limit = 100; SET possync.compare_interval = 0;');
same('susp', 'suspicious, then allowed');

# log enabled after deletes
on_master("DELETE FROM late WHERE id IN (5, 6)");
on_master("SELECT possync_log('late')");
pull('late');
on_master("UPDATE late SET n = -n, updated_at = now() WHERE id = 100");
pull('late', 'SET possync.compare_interval = 0;');
same('late', 'deletes before the log was made');
# truncated: keys not known, interval not due
on_master("DELETE FROM late WHERE id IN (7)"); pull('late');
on_master("TRUNCATE late; INSERT INTO late SELECT i, i FROM generate_series(1, 8990) i");
pull('late', 'SET possync.compare_interval = 600;SET possync.delete_limit=100;');
on_master("UPDATE late SET n = -n, updated_at = now() WHERE id = 101");
pull('late', 'SET possync.compare_interval = 0;SET possync.delete_limit=100;');
same('late', 'deletes by TRUNCATE, change column, not due');


on_master("DROP TABLE part_2");
on_master("CREATE TABLE part_3 (id integer PRIMARY KEY, n integer); INSERT INTO part_3 SELECT i, i FROM generate_series(20000, 20100) i; ALTER TABLE part ATTACH PARTITION part_3 FOR VALUES FROM (20000) TO (30000)");
on_till("CREATE TABLE part_3 PARTITION OF part FOR VALUES FROM (20000) TO (30000)");
pull('part', 'SET possync.delete_limit = 100; SET possync.compare_interval = 0;');
on_master("UPDATE part SET n = -n WHERE id = 1");
pull('part', 'SET possync.delete_limit = 100; SET possync.compare_interval = 0;');
same('part', 'attach, drop of partition');
# truncate of a new partition
on_master("CREATE TABLE part_4 PARTITION OF part FOR VALUES FROM (30000) TO (40000); INSERT INTO part VALUES (30001, 1)");
on_till("CREATE TABLE part_4 PARTITION OF part FOR VALUES FROM (30000) TO (40000)");
pull('part');
on_master("TRUNCATE part_4"); pull('part', 'SET possync.compare_interval = 0;');
is(on_till('SELECT count(*) FROM part_4'), 0, 'truncate of a partition made later');


on_till('CREATE TABLE line (k integer REFERENCES kept); INSERT INTO line VALUES (1)');
on_master('DELETE FROM kept WHERE id = 1'); pull('kept');
on_till('DELETE FROM line'); pull('kept', 'SET possync.compare_interval = 0;');
is(on_till('SELECT count(*) FROM kept WHERE id = 1'), 0, 'kept row goes when it can');


on_master("CREATE ROLE spy; GRANT USAGE ON SCHEMA public TO spy; CREATE TABLE secret (pin text PRIMARY KEY, note text); GRANT SELECT (note) ON secret TO spy; SELECT possync_log('secret'); INSERT INTO secret VALUES ('4711', 'x')");
is(on_master("SET ROLE spy; SELECT keys_text FROM possync_changes"), '', 'column privilege');
on_master("CREATE TABLE rls (pin text PRIMARY KEY); GRANT SELECT ON rls TO spy; ALTER TABLE rls ENABLE ROW LEVEL SECURITY; SELECT possync_log('rls'); INSERT INTO rls VALUES ('4712')");
is(on_master("SET ROLE spy; SELECT keys_text FROM possync_changes WHERE keys_text::text ~ '4712'"), '', 'rls');


my ($st, $o, $e) = $master->psql('postgres', 'ALTER TABLE kept RENAME id TO nr; UPDATE kept SET n = 1 WHERE nr = 5');
like($e, qr/^\S*: WARNING:  key column "id" of logged table "kept" does not exist any more/, 'a renamed key column warns, and the master goes on');

# standby
$master->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($master, 'b', has_streaming => 1);
$standby->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\nhot_standby_feedback = on");
$standby->start;
$master->wait_for_catchup($standby);
on_till("ALTER SERVER hq OPTIONS (SET port '" . $standby->port . "')");
pull('sub'); pull('sub');
my $late = Possync::Session->new($master);
$late->run("BEGIN;\nUPDATE sub SET n = 777777 WHERE id = 50;\nDELETE FROM sub WHERE id = 51");
on_master('UPDATE sub SET n = 888888 WHERE id = 60');
$master->wait_for_catchup($standby);
pull('sub');
$late->run('COMMIT'); $master->wait_for_catchup($standby);
pull('sub'); pull('sub', 'SET possync.compare_interval = 0;');
is(on_till("SELECT n FROM sub WHERE id = 50"), 777777, 'update late, on a standby');
is(on_till("SELECT count(*) FROM sub WHERE id = 51"), 0, 'delete late, on a standby');
done_testing();
