# A master that keeps a change log: what changed and what was deleted is found
# exactly, with or without a change column, whatever transactions did in which
# order; and where the log cannot tell, a comparison does.

use strict;
use warnings FATAL => 'all';

use Possync;
use Test::More;

my $master = Possync->cluster('master', 'max_prepared_transactions = 5');
my $till = Possync->cluster('till');
my $proxy = Possync::Proxy->new($master->port);
connect_till($till, $proxy->port);

sub on_master { return $master->safe_psql('postgres', $_[0]) }
sub on_till { return $till->safe_psql('postgres', $_[0]) }

# Keys: a number, a text, several columns; one table in parts
my %keys = (number => 'id', word => 'code', pair => 'a, b', part => 'id');
for my $node ($master, $till)
{
	$node->safe_psql('postgres', <<'EOC');
CREATE TABLE number (id serial PRIMARY KEY, code text NOT NULL UNIQUE, n integer);
CREATE TABLE word (code varchar(20) PRIMARY KEY, n integer);
CREATE TABLE pair (a integer, b text, n integer, PRIMARY KEY (a, b));
CREATE TABLE part (id serial PRIMARY KEY, code text NOT NULL, n integer) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (1) TO (500);
CREATE TABLE part_2 PARTITION OF part DEFAULT;
EOC
}
on_till('ALTER SEQUENCE number_id_seq RESTART 1000');
on_master(<<'EOC');
CREATE EXTENSION possync;
INSERT INTO number (code, n) SELECT 'N' || i, i FROM generate_series(1, 2000) i;
INSERT INTO word SELECT 'W"\' || i, i FROM generate_series(1, 2000) i;
INSERT INTO pair SELECT i, 'x''y' || i, i FROM generate_series(1, 2000) i;
INSERT INTO part (code, n) SELECT 'P' || i, i FROM generate_series(1, 2000) i;
ANALYZE;
EOC
on_master("SELECT possync_log('$_')") for sort keys %keys;
on_till("SELECT * FROM possync_add_model('$_', server => 'hq'); SELECT possync_set_model('$_', on_delete => 'delete')") for sort keys %keys;

my $session = Possync::Session->new($till);
my $counts = "concat_ws('|', status, rows_read, rows_created, rows_updated, rows_deleted, rows_left_out, error)";
sub pull
{
	my ($table) = @_;
	return ($session->run("SELECT $counts FROM possync_pull('$table')"))[0];
}

sub same
{
	my ($table, $name) = @_;
	my $columns = $table eq 'number' || $table eq 'part' ? 'code, n' : '*';
	is_same($master, $till, "SELECT $columns FROM $table ORDER BY 1, 2", "$name: the same");
	return;
}

for my $table (sort keys %keys)
{
	my $key = $table eq 'word' ? 'code' : $table eq 'pair' ? 'a' : 'id';
	my $one = $table eq 'pair' ? 'a' : 'n';

	is(pull($table), 'ok|2000|2000|0|0|0', "$table: all of it");
	is(pull($table), 'ok|0|0|0|0|0', "$table: nothing more");
	pull($table) for 1 .. 3;
	my $before = $proxy->stats->{sent};
	pull($table);
	cmp_ok($proxy->stats->{sent} - $before, '<', 500, "$table: which is asked for in a few bytes") if $table eq 'number';
	on_master("UPDATE $table SET n = -n WHERE n BETWEEN 10 AND 19");
	is(pull($table), 'ok|10|0|10|0|0', "$table: what was updated is read, and nothing else");
	on_master("DELETE FROM $table WHERE n BETWEEN 20 AND 24");
	is(pull($table), 'ok|0|0|0|5|0', "$table: what was deleted is deleted");
	same($table, $table);

	# late: begun before, committed after
	my @late = map { Possync::Session->new($master) } 1 .. 2;
	$late[0]->run("BEGIN;\nUPDATE $table SET n = 1000001 WHERE n = 31;\nDELETE FROM $table WHERE n = 32");
	$late[1]->run("BEGIN;\nUPDATE $table SET n = 1000002 WHERE n = 33");
	on_master("UPDATE $table SET n = 1000003 WHERE n = 34");
	is(pull($table), 'ok|1|0|1|0|0', "$table: two are late");
	$late[1]->run('COMMIT');
	is(pull($table), 'ok|1|0|1|0|0', "$table: the second comes");
	$late[0]->run('COMMIT');
	is(pull($table), 'ok|1|0|1|1|0', "$table: and the first");
	same($table, "$table, late");

	# prepared, rolled back, in subtransactions, and all of these
	on_master("BEGIN; UPDATE $table SET n = 1000004 WHERE n = 40; DELETE FROM $table WHERE n = 41; PREPARE TRANSACTION 'p'");
	on_master("BEGIN; UPDATE $table SET n = 1000005 WHERE n = 42; SAVEPOINT s; UPDATE $table SET n = 1000006 WHERE n = 43; ROLLBACK TO s; UPDATE $table SET n = 1000007 WHERE n = 44; COMMIT");
	on_master("BEGIN; UPDATE $table SET n = 1000008 WHERE n = 45; ROLLBACK");
	is(pull($table), 'ok|3|0|2|0|0', "$table: what was rolled back may be read again, and is the same");
	on_master("COMMIT PREPARED 'p'");
	is(pull($table), 'ok|1|0|1|1|0', "$table: a prepared transaction");
	same($table, "$table, prepared");

	# deleted and made again in one go; a changed key; more than one entry holds
	on_master("BEGIN; CREATE TEMP TABLE x AS SELECT * FROM $table WHERE n = 50; DELETE FROM $table WHERE n = 50; UPDATE x SET n = 51000; INSERT INTO $table SELECT * FROM x; COMMIT");
	is(pull($table), 'ok|1|0|1|0|0', "$table: deleted and made again is updated");
	on_master("UPDATE $table SET n = n + 1");
	like(pull($table), qr/^ok\|19\d\d\|0\|19\d\d\|0\|0$/, "$table: all of it");
	same($table, "$table, all");
	on_master("BEGIN; DELETE FROM $table WHERE n > 1000; COMMIT");
	$session->run('SET possync.delete_limit = 100');
	like(pull($table), qr/^ok\|0\|0\|0\|10\d\d\|0$/, "$table: half of it is deleted");
	same($table, "$table, half");
}

# A row that is needed stays until it is not, and comes back if it does.
on_till('CREATE TABLE line (number integer REFERENCES number); INSERT INTO line SELECT id FROM number ORDER BY code LIMIT 1');
my $kept = on_till('SELECT code FROM number ORDER BY code LIMIT 1');
on_master("CREATE TABLE kept AS SELECT * FROM number WHERE code = '$kept'; DELETE FROM number WHERE code = '$kept'");
is(pull('number'), 'ok|0|0|0|0|1', 'a needed row is kept');
on_till('DELETE FROM line');
on_master("INSERT INTO number SELECT id, code, 77 FROM kept");
is(pull('number'), 'ok|1|0|1|0|0', 'it comes back and is not deleted although it could be');
same('number', 'the row that came back');

# What the log cannot tell: TRUNCATE, entries that are gone, another trigger
on_master("TRUNCATE part; INSERT INTO part (id, code, n) VALUES (1, 'P1', 1), (600, 'P600', 2)");
like(pull('part'), qr/^ok\|/, 'a truncated table');
same('part', 'after TRUNCATE');
on_master("TRUNCATE part_1");
pull('part');
same('part', 'after TRUNCATE of a partition');

on_master("SELECT possync_unlog('word'); UPDATE word SET n = -5 WHERE n = 5; DELETE FROM word WHERE n = 6; SELECT possync_log('word'); UPDATE word SET n = -7 WHERE n = 7");
on_till("SELECT 1");
$session = Possync::Session->new($till);
$session->run('SET possync.delete_limit = 100; SET possync.compare_interval = 0');
pull('word');
same('word', 'the log had a gap');
on_master("UPDATE word SET n = -8 WHERE n = 8; DELETE FROM word WHERE n = 9");
is(pull('word'), 'ok|1|0|1|1|0', 'and has none from then on');

on_master(q(LOAD 'possync'; ALTER SYSTEM SET possync.log_keep = 0));
on_master('SELECT pg_reload_conf()');
on_master("CREATE PROCEDURE work(n integer) LANGUAGE plpgsql AS \$\$ BEGIN FOR i IN 1 .. n LOOP UPDATE number SET n = i WHERE id = 1 + i % 100; COMMIT; END LOOP; END \$\$");
on_master('DELETE FROM pair WHERE n = 300; UPDATE pair SET n = -400 WHERE n = 400');
on_master('CALL work(3000)');
ok(on_master('SELECT count(*) FROM synchronize_log') < 2500, 'old entries are taken away by those who write new ones');
is(on_master("SELECT count(*) FROM synchronize_trimmed WHERE relation = 'pair'::regclass"), 1, 'and it is noted which');
pull($_) for 'number', 'pair';
same($_, 'a till that was away for too long') for 'number', 'pair';
on_master("UPDATE pair SET n = -401 WHERE n = 401");
is(pull('pair'), 'ok|1|0|1|0|0', 'is up to date again');

# rights and mistakes
like(($master->psql('postgres', 'SET ROLE clerk; SELECT possync_log($$number$$)'))[2], qr/permission denied|must be owner of table/, 'only the owner may log a table');
on_master('CREATE ROLE guest; CREATE TABLE without (n integer); CREATE VIEW seen AS SELECT 1 AS n');
is(on_master('SET ROLE guest; SELECT count(*) FROM possync_changes'), 0, 'who may not read a table does not see its keys');
like(($master->psql('postgres', "SELECT possync_log('without')"))[2], qr/has no primary key.*possync_log\(table, key => /s, 'a table without primary key');
like(($master->psql('postgres', "SELECT possync_log('without', '{m}')"))[2], qr/column "m" of table \S*without does not exist/, 'a wrong column');
like(($master->psql('postgres', "SELECT possync_log('seen')"))[2], qr/cannot be logged/, 'a view');
like(($master->psql('postgres', "SELECT possync_unlog('without')"))[2], qr/is not logged/, 'what is not logged');

done_testing();
