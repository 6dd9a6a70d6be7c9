# A pull belongs to the transaction of its caller, whatever that is, and to
# nobody else's: sessions pull, write and change tables at once.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "max_prepared_transactions = 5\n");
my $catalogue = 'SELECT * FROM catalogue ORDER BY what, key';
my $step = 0;

shop($master, products => 300, first_key => 1000001, office => 'on');
shop($till, products => 20);
connect_till($till, $master->port);
$till->safe_psql('postgres', <<"EOC");
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT * FROM possync_add_model('price_list', server => 'hq');
SELECT possync_set_field('unit', 'symbol', match => true);
EOC
my ($one, $two) = map { Possync::Session->new($till) } 1, 2;
my $pull = "SELECT status FROM possync_pull('product')";
my $prices = "SELECT status FROM possync_pull('price_list')";

sub change
{
	$step++;
	$master->safe_psql('postgres', <<"EOC");
UPDATE product SET cost_price = cost_price + 1;
UPDATE template SET list_price = list_price + 1;
UPDATE price_line SET price = price + 1;
INSERT INTO product (template, sku, cost_price) SELECT min(id), 'NEW$step', 1 FROM template;
INSERT INTO barcode (product, code) SELECT id, lpad('$step', 13, '9') FROM product WHERE sku = 'NEW$step';
EOC
	return;
}

sub history { return $till->safe_psql('postgres', 'SELECT count(*) FROM synchronize_history') }

sub same
{
	my ($name) = @_;
	is_same($master, $till, $catalogue, "$name: both sides say the same");
	return;
}

# Rolled back
my $before = content($till);
is(($one->run("BEGIN;\n$pull"))[0], 'ok', 'pulled in a transaction');
like(($one->run('SELECT count(*) FROM product'))[0], qr/^30\d$/, 'the rows are seen in it');
$one->run('ROLLBACK');
is(content($till), $before, 'nothing is left of it');
is(history(), '0', 'no history either');

($one->run("BEGIN;\nINSERT INTO tax (code, name, rate) VALUES ('MINE', 'mine', 0);\nSAVEPOINT s"));
is(($one->run($pull))[0], 'ok', 'pulled after a savepoint');
is(($one->run("ROLLBACK TO s;\nSELECT count(*) FROM product"))[0], '20', 'and back to it');
is(($one->run($pull))[0], 'ok', 'pulled again');
is(($one->run("SELECT rows_created + rows_updated FROM possync_pull('product')"))[0], '0', 'and again in the same transaction');
is(($one->run($prices))[0], 'ok', 'and the other tree');
$one->run("DELETE FROM tax WHERE code = 'MINE';\nCOMMIT");
same('committed');
is(history(), '3', 'history has what was committed');

# Changes made here in the same transaction before and after
change();
$one->run("BEGIN;\nUPDATE product SET cost_price = -1 WHERE sku = 'P0000007'");
is(($one->run($pull))[0], 'ok', 'after a change of one\'s own');
$one->run('COMMIT');
same('after a change of one\'s own') if ($one->run($prices))[0] eq 'ok';

# Functions that catch errors
change();
$till->safe_psql('postgres', <<'EOC');
CREATE FUNCTION attempt(fail text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE h synchronize_history;
BEGIN
	h := possync_pull('product');
	PERFORM 1 / CASE fail WHEN 'after' THEN 0 ELSE 1 END;
	RETURN h.status;
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate;
END $$;
EOC
$before = content($till);
is(($one->run("SELECT attempt('after')"))[0], '22012', 'a function fails after the pull');
is(content($till), $before, 'nothing is left of the pull');
is(($one->run("SELECT attempt('no')"))[0], 'ok', 'and succeeds');
is(($one->run("DO \$\$ BEGIN PERFORM possync_pull('nothing'); EXCEPTION WHEN undefined_object THEN RAISE NOTICE 'caught'; END \$\$"))[1] =~ /caught/ ? 1 : 0,
	1, 'an error raised can be caught');
is(($one->run("DO \$\$ BEGIN PERFORM possync_pull('price_list'); COMMIT; PERFORM possync_pull('price_list'); ROLLBACK; PERFORM possync_pull('product'); END \$\$"))[1],
	'', 'several transactions in a block');
same('after functions');
is(($one->run("SELECT count(*) FROM (SELECT possync_pull(m) FROM unnest('{product,price_list,product}'::text[]) m) p"))[0], '3',
	'several pulls in one statement');
is(($one->run("SELECT * FROM (SELECT (possync_pull('product')).status FROM generate_series(1, 3)) p LIMIT 1"))[0], 'ok',
	'a query that ends early');
is(($one->run("DECLARE c CURSOR WITH HOLD FOR SELECT status FROM possync_pull('product');\nFETCH c"))[0], 'ok', 'a cursor');

# Kinds of transactions
for my $mode ('READ ONLY', 'ISOLATION LEVEL REPEATABLE READ READ ONLY')
{
	my ($out, $err) = $one->run("BEGIN TRANSACTION $mode;\n$pull;\nROLLBACK");
	like($err, qr/ERROR:  cannot execute possync_pull\(\) in a read-only transaction/, "in a $mode transaction");
}
for my $mode ('ISOLATION LEVEL REPEATABLE READ', 'ISOLATION LEVEL SERIALIZABLE')
{
	change();
	my ($out, $err) = $one->run("BEGIN TRANSACTION $mode;\nSELECT 1;\n$pull;\n$prices;\n$pull;\nCOMMIT");
	is($out, "1\nok\nok\nok", "in $mode") or diag $err;
	same("in $mode");

	# somebody else pulled since our snapshot: never twice
	change();
	$one->run("BEGIN TRANSACTION $mode;\nSELECT 1");
	is(($two->run($pull))[0], 'ok', "$mode: another session pulls");
	($out, $err) = $one->run("$pull;\n$prices");
	$one->run('COMMIT');
	like($out, qr/^(failed|ok)\n(failed|ok)$/, "$mode: refused or nothing to do") or diag $err;
	like($err, qr/^(.*could not serialize access .*)?$/s, "$mode: refused for what it is");
	unlike($err, qr/duplicate key/, "$mode: not for its consequences");
	is($till->safe_psql('postgres', "SELECT count(*) FROM product WHERE sku = 'NEW$step'"), '1', "$mode: one new product");
	is(($two->run("$pull;\n$prices"))[0], "ok\nok", "$mode: and on it goes");
	same("$mode, two sessions");
}

# Two-phase commit
change();
my ($out, $err) = $one->run("BEGIN;\n$pull;\nPREPARE TRANSACTION 'p'");
is("$out$err", 'ok', 'prepared');
$two->start_sql($pull);
$two->wait_until("wait_event_type = 'Lock'");
ok(!$two->is_done, 'another pull waits for a prepared one');
$till->safe_psql('postgres', "COMMIT PREPARED 'p'");
is(($two->answer)[0], 'ok', 'and goes on');
is(($one->run($prices))[0], 'ok', 'prices');
same('after two-phase commit');

# The same tree twice at once
change();
$one->run("BEGIN;\n$pull");
$two->start_sql("SELECT status, rows_created, rows_updated FROM possync_pull('product')");
$two->wait_until("wait_event_type = 'Lock'");
$one->run('COMMIT');
is(($two->answer)[0], 'ok|0|0', 'the second finds nothing to do');

# The same tree twice, the first one given up
change();
$one->run("BEGIN;\n$pull");
$two->start_sql("SELECT status, rows_created FROM possync_pull('product')");
$two->wait_until("wait_event_type = 'Lock'");
$one->run('ROLLBACK');
is(($two->answer)[0], 'ok|2', 'the second does it all if the first gave up');

# Two trees that share models
change();
$one->run("BEGIN;\n$pull");
$two->start_sql($prices);
$two->wait_until("wait_event_type = 'Lock'");
$one->run('COMMIT');
is(($two->answer)[0], 'ok', 'a tree that shares models waits');
same('two trees');

# Many at once, with and without a kept connection: no deadlock, nothing twice
change();
my @sessions = map { Possync::Session->new($till) } 1 .. 4;
for my $round (1 .. 3)
{
	change();
	$sessions[$_]->start_sql($_ % 2 ? $pull : $prices) for 0 .. 3;
	my @answers = map { join ' ', ($_->answer)[0, 1] } @sessions;
	is("@answers", 'ok  ok  ok  ok ', "four sessions at once, round $round");
}
$_->quit for @sessions;
is(($one->run($prices))[0], 'ok', 'prices');
same('many at once');

# Local tables change under way
my $sleeping = 'ALTER TABLE barcode RENAME TO awake; CREATE VIEW barcode AS SELECT id, product, code, CASE WHEN row_number() OVER (ORDER BY id) = 250 THEN updated_at + coalesce(nullif(pg_sleep(2)::text, $$$$), $$0 s$$)::interval ELSE updated_at END AS updated_at FROM awake';
change();
$master->safe_psql('postgres', $sleeping);
$one->start_sql($pull);
$one->wait_until("wait_event_type = 'Extension'");
select undef, undef, undef, 0.3;
$two->start_sql('ALTER TABLE barcode ADD note text');
is(($one->answer)[0], 'ok', 'a pull while a table is altered');
is(($two->answer)[1], '', 'which waits for it');
is(($one->run($pull))[0], 'ok', 'and the next one');
$two->run('ALTER TABLE barcode DROP note');
is(($one->run($pull))[0], 'ok', 'and the one after the column is gone');
$master->safe_psql('postgres', 'DROP VIEW barcode; ALTER TABLE awake RENAME TO barcode');
for my $ddl ('ALTER TABLE barcode ALTER updated_at DROP NOT NULL', 'CREATE INDEX ON barcode (updated_at, code)',
	'ALTER TABLE barcode ADD CONSTRAINT c CHECK (code <> $$$$)', 'ALTER TABLE barcode RENAME updated_at TO changed_at')
{
	change();
	$two->run("BEGIN;\n$ddl");
	$one->start_sql($pull);
	$one->wait_until("wait_event_type = 'Lock'");
	$two->run('COMMIT');
	($out, $err) = $one->answer;
	like($out, $ddl =~ /RENAME/ ? qr/^(ok|failed)$/ : qr/^ok$/, "after: $ddl") or diag $err;
}
$two->run('ALTER TABLE barcode RENAME changed_at TO updated_at');
is(($one->run($pull))[0], 'ok', 'and back');
is(($one->run($prices))[0], 'ok', 'prices');
same('after DDL');

$two->run("BEGIN;\nDROP TABLE barcode CASCADE");
change();
$one->start_sql($pull);
$one->wait_until("wait_event_type = 'Lock'");
$two->run('COMMIT');
($out, $err) = $one->answer;
like("$out $err", qr/failed.*barcode|ERROR.*barcode|does not exist/s, "dropped under way: $out");
($out, $err) = $one->run("SELECT status, error, error_detail FROM possync_pull('product')");
like("$out $err", qr/(table|model|relation).*(no longer exists|does not exist|dropped)|ok/s, "a table that was dropped is told: $out $err");

$_->quit for $one, $two;
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP|signal 11|deadlock|XX000/, 'nothing leaked');

done_testing();
