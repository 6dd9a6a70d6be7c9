# A till that sells for two masters: what one of them does not take, or is not there to
# take, holds nothing back from the other.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use Test::More;
use Time::HiRes qw(usleep);

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "shared_preload_libraries = 'possync'\npossync.retry_max = '1s'\nmax_worker_processes = 16");

sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub at_branch { return $master->safe_psql('branch', $_[0]); }
sub push_notes { return on_till("SELECT concat_ws(': ', status, error) FROM possync_push('note')"); }
sub notes { return at_branch('SELECT string_agg(code, $$ $$ ORDER BY code) FROM note'); }
sub sold { return $master->safe_psql('postgres', 'SELECT string_agg(number, $$ $$ ORDER BY number) FROM sale'); }
sub held { return on_till('SELECT string_agg(server || $$ $$ || model || $$ $$ || held || $$/$$ || entries, $$, $$ ORDER BY server, model) FROM possync_queue_depth'); }
sub fails_with
{
	my ($sql, $error, $test) = @_;
	my ($status, $out, $err) = $till->psql('postgres', $sql);
	like($err, $error, $test);
	return;
}

sales_master($master);
sales_till($till, $master->port, first_key => 1);
$master->safe_psql('postgres', 'CREATE DATABASE branch');
my $note = 'CREATE TABLE note (id serial PRIMARY KEY, code text UNIQUE CHECK (code <> $$bad$$))';
at_branch($note);
on_till($note =~ s/ CHECK.*/)/r);
my $port = $master->port;
on_till(<<"EOC");
CREATE SERVER branch FOREIGN DATA WRAPPER possync_postgres OPTIONS (host '127.0.0.1', port '$port', dbname 'branch');
CREATE USER MAPPING FOR CURRENT_USER SERVER branch OPTIONS (user 'clerk', password 'secret');
SELECT FROM possync_add_model('note', server => 'branch');
SELECT possync_queue('note');
EOC

# One transaction, a part of it for either
sub sell { on_till("BEGIN; INSERT INTO sale (number) VALUES ('$_[0]'); INSERT INTO note (code) VALUES ('$_[1]'); COMMIT"); return; }
$master->safe_psql('postgres', 'ALTER TABLE sale ADD CONSTRAINT refused CHECK (number <> $$bad$$)');
sell('bad', 'n1');
sell('s2', 'bad');
sell('s3', 'n3');
is(push_sales($till), 'ok', 'one master refuses a sale');
is(sold(), 's2 s3', 'and takes others');
is(push_notes(), 'ok', 'another refuses what belongs to another sale');
is(notes(), 'n1 n3', 'and takes all else, whatever the first one has refused');
is(held(), 'branch note 1/1, hq sale 1/1', 'each waits for its own');
on_till('SELECT possync_discard(id, $$no$$) FROM possync_quarantine WHERE server = $$hq$$');
is(held(), 'branch note 1/1', 'what is given up is so for one master');
at_branch('ALTER TABLE note DROP CONSTRAINT note_code_check');
on_till('SELECT possync_retry(id) FROM possync_quarantine WHERE discarded_at IS NULL');
is(push_notes() . ' ' . notes(), 'ok bad n1 n3', 'the other one has it in the end');

# Numbers that are given once more, at the end of a transaction that looked at the queue
on_till(<<'EOC');
BEGIN;
INSERT INTO sale (number) VALUES ('s4');
INSERT INTO note (code) VALUES ('n4');
SELECT FROM possync_explain('sale', '1');
INSERT INTO note (code) VALUES ('n5');
COMMIT;
EOC
is(on_till('SELECT string_agg(n::text, $$ $$) || count(DISTINCT txid & ((1::int8 << 48) - 1)) FROM (SELECT txid, count(*) AS n FROM synchronize_queue GROUP BY txid ORDER BY 2) q'),
	'1 21', 'a transaction has one number, in two lanes');
is(push_notes() . ' ' . notes(), 'ok bad n1 n3 n4 n5', 'each goes');
is(push_sales($till) . ' ' . sold(), 'ok s2 s3 s4', 'its own way');

# Servers of models
sell('s6', 'n6');
fails_with('UPDATE synchronize_model SET server = $$hq$$ WHERE name = $$note$$', qr/model "note" cannot be given to another server/, 'a model does not change to another server');
fails_with('UPDATE synchronize_model SET lane = 77 WHERE name = $$note$$', qr/model "note" cannot be given to another server/, 'nor to another lane');
on_till('ALTER SERVER hq RENAME TO office; UPDATE synchronize_model SET server = $$office$$ WHERE server = $$hq$$');
is(push_sales($till) . ' ' . sold(), 'ok s2 s3 s4 s6', 'what waited for a server is sent when that has another name');
sell('s7', 'n7');
is(push_sales($till) . ' ' . sold(), 'ok s2 s3 s4 s6 s7', 'and so is what comes then');

# Models that were made by hand are served, too, whatever lane they have
on_till('CREATE TABLE memo (id serial PRIMARY KEY, code text UNIQUE)');
at_branch('CREATE TABLE memo (id serial PRIMARY KEY, code text UNIQUE)');
on_till(<<'EOC');
INSERT INTO synchronize_model (name, relation, server, lane, remote, key_columns) VALUES ('memo', 'memo', 'branch', 1, 'public.memo', '{id}');
INSERT INTO synchronize_field (model, name, remote, copy, match)
SELECT id, f, f, f <> 'id', f <> 'id' FROM synchronize_model, unnest('{id,code}'::text[]) f WHERE name = 'memo';
SELECT possync_queue('memo');
INSERT INTO memo (code) VALUES ('m1');
EOC
is(push_notes() . ' ' . notes(), 'ok bad n1 n3 n4 n5 n6 n7', 'notes');
is(at_branch('SELECT code FROM memo'), 'm1', 'and what is in another lane');
is(held(), '', 'nothing waits');

# Another master in the place of one: keys that this one has made ahead are not used
# there. The runner, which has them, goes on.
$master->safe_psql('postgres', 'CREATE DATABASE elsewhere TEMPLATE branch');
$master->safe_psql('elsewhere', 'SELECT setval($$note_id_seq$$, 1000)');
on_till("SELECT possync_schedule('note', 'push', every => '1 hour')");
on_till(q{INSERT INTO note (code) SELECT 'r' || i FROM generate_series(1, 100) i});
sub all_pushed
{
	for (1 .. 100)
	{
		return if on_till('SELECT count(*) FROM synchronize_queue') eq '0';
		usleep(100_000);
	}
	die 'not pushed: ' . on_till('SELECT json_agg(q) FROM synchronize_quarantine q');
}
all_pushed();
my $runner = "SELECT pid FROM possync_processes() WHERE kind = 'runner'";
my $pid = on_till($runner);
cmp_ok(at_branch('SELECT last_value - max(id) FROM note, note_id_seq GROUP BY last_value'), '>', 0, 'keys were made ahead');
on_till("ALTER SERVER branch OPTIONS (SET dbname 'elsewhere'); INSERT INTO note (code) VALUES ('new')");
all_pushed();
is($master->safe_psql('elsewhere', "SELECT id FROM note WHERE code = 'new'"), 1001, 'a key that the new one has made');
is(on_till($runner), $pid, 'by the same runner');

# The same where the session is lost, and whoever connects again finds another master
for my $n (3, 60)
{
	on_till("INSERT INTO note (code) SELECT 'k$n ' || i FROM generate_series(1, 40) i");
	all_pushed();
	$master->safe_psql('postgres', <<"EOC");
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('branch', 'elsewhere');
CREATE DATABASE older$n TEMPLATE elsewhere;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('branch', 'elsewhere');
ALTER DATABASE elsewhere RENAME TO newer$n;
ALTER DATABASE older$n RENAME TO elsewhere;
EOC
	$master->safe_psql('elsewhere', "SELECT setval('note_id_seq', 10000 * $n)");
	on_till("INSERT INTO note (code) SELECT 'o$n ' || i FROM generate_series(1, $n) i");
	all_pushed();
	is($master->safe_psql('elsewhere', "SELECT count(*), min(id) > 10000 * $n FROM note WHERE code LIKE 'o$n %'"), "$n|t", "$n rows under keys that the one has made that is there now");
	is(on_till($runner), $pid, 'by the same runner');
}

done_testing();
