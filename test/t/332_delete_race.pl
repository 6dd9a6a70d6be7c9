# A row that is pushed while a pull looks for deleted ones is not one of them.

use strict;
use warnings FATAL => 'all';
use Possync;
use Possync::Sales;
use Test::More;
my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "shared_preload_libraries = 'possync'");
connect_till($till, $master->port);
for my $n ($master, $till) {
	$n->safe_psql('postgres', "CREATE TABLE par (id integer PRIMARY KEY, n integer); CREATE TABLE nat (code text PRIMARY KEY, par integer REFERENCES par, n integer)");
}
sub here { return $till->safe_psql('postgres', $_[0]) }
sub there { return $master->safe_psql('postgres', $_[0]) }
there("CREATE EXTENSION possync; GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk; INSERT INTO par SELECT i, i FROM generate_series(1, 10) i; INSERT INTO nat SELECT 'N' || i, NULL, i FROM generate_series(1, 20) i; ANALYZE; SELECT possync_log('nat')");
here("SELECT * FROM possync_add_model('nat', server => 'hq'); SELECT possync_set_model(name, on_delete => 'delete') FROM synchronize_model; ");
my $counts = "concat_ws('|', status, rows_read, rows_created, rows_updated, rows_deleted, rows_left_out, error)";
here("SELECT $counts FROM possync_pull('nat')");
here("SELECT possync_queue('nat')");
# the log knows X1, written and deleted at the master before; the till never had it
there("INSERT INTO nat VALUES ('X1', NULL, 1)"); there("DELETE FROM nat WHERE code = 'X1'");
my $block = Possync::Session->new($master);
$block->run("BEGIN;\nLOCK par");
my $pull = Possync::Session->new($till);
$pull->start_sql("SELECT $counts FROM possync_pull('nat')");
sleep 1;
my $pid = $master->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'clerk'"); kill 'STOP', $pid;
$block->run('COMMIT');
here("INSERT INTO nat VALUES ('X1', NULL, 55)");
my ($s, $o, $e) = $till->psql('postgres', "SELECT concat_ws('|', status, rows_read, error) FROM possync_push('nat')");
is(there("SELECT string_agg(nat::text, ' ') FROM nat WHERE code = 'X1'"), '(X1,,55)', 'pushed meanwhile');
kill 'CONT', $pid;
$pull->answer;
is(here("SELECT count(*) FROM nat WHERE code = 'X1'"), 1, 'a row just pushed is still here');

done_testing();
