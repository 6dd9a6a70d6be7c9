# What looks as if the master had changed a row, too, and is no conflict; and ways in
# which a transaction could wait for ever.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');
sales_master($master);
sales_till($till, $master->port, first_key => 100);

sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub pull { return on_till("SELECT concat_ws(': ', status, error) FROM possync_pull('customer')"); }
sub held { return on_till('SELECT string_agg(concat_ws($$ $$, reason, direction, message), $$, $$ ORDER BY id) FROM possync_quarantine') . ' ' . on_till('SELECT count(DISTINCT txid) FROM synchronize_held'); }
sub waiting { return on_till('SELECT count(*) FROM synchronize_queue'); }
sub name_of { return join '/', map { $_->safe_psql('postgres', "SELECT name FROM customer WHERE code = '$_[0]'") } $master, $till; }
sub rename_to { my ($code, $name) = @_; return on_till("UPDATE customer SET name = '$name' WHERE code = '$code'"); }
sub policy { return on_till("SELECT possync_set_model('customer', on_conflict => '$_[0]')"); }
sub lose_answer
{
	on_till("ALTER DATABASE postgres SET possync.fault = 'exit: push written'");
	isnt(push_sales($till), 'ok', 'the answer is lost');
	on_till('ALTER DATABASE postgres RESET possync.fault');
	return;
}
sub quiet { my ($test) = @_; is(waiting() . held(), '0 0', "$test: nothing waits"); return; }

# Types differ: what a value has been through on its way here and back is no change
on_master('ALTER TABLE customer ADD amount numeric, ADD note jsonb, ADD doc json, ADD remote text, ADD at timestamptz');
on_till('ALTER TABLE customer ADD amount numeric(10,2), ADD note jsonb, ADD doc jsonb, ADD remote text, ADD at timestamptz(0)');
on_till("INSERT INTO customer (code, name) VALUES ('z1', 'V0'); DELETE FROM synchronize_queue");
on_master(q(INSERT INTO customer (code, name, amount, note, doc, remote, at) SELECT 'c' || i, 'n' || i, 1.5, '{"a": 1}', '{"a":1}', 'r', '2020-01-01 00:00:00.25' FROM generate_series(1, 6) i));
on_till('SELECT * FROM possync_add_model($$customer$$, server => $$hq$$); SELECT possync_queue($$customer$$)');
policy('remote_wins');
is(pull(), 'ok', 'customers are pulled');
rename_to('c2', 'types');
is(push_sales($till), 'ok', 'other types');
is(name_of('c2'), 'types/types', 'make no conflict');
quiet('other types');

# A pull before the push
rename_to('c3', 'first');
is(pull(), 'ok', 'a pull that comes first');
is(name_of('c3'), 'n3/first', 'takes the change of the till for what it is');
is(push_sales($till), 'ok', 'it is pushed');
quiet('a pull that comes first');

# What has arrived unknown to us is not the master's own
rename_to('c1', 'v1');
rename_to('c1', 'v2');
lose_answer();
rename_to('c1', 'v3');
is(push_sales($till), 'ok', 'changed again after an answer was lost');
is(name_of('c1'), 'v3/v3', 'the last change is there');
quiet('changed again');
rename_to('c1', 'w1');
lose_answer();
rename_to('c1', 'w2');
is(pull(), 'ok', 'pulled after an answer was lost');
is(name_of('c1'), 'w1/w2', 'the last change stays');
is(push_sales($till), 'ok', 'and is pushed');
is(name_of('c1'), 'w2/w2', 'to the master');
quiet('pulled after');

# A row that goes before its changes, as a sale needs it
on_till('ALTER DATABASE postgres SET possync.batch_entries = 4');
on_till("SELECT sell('needs it', 'z1', 1)");
on_till("SELECT sell('between $_', NULL, 1)") for 1 .. 4;
rename_to('z1', 'V1');
on_till("SELECT sell('then $_', NULL, 1)") for 1 .. 4;
rename_to('z1', 'V2');
is(push_sales($till), 'ok', 'a row that goes before its changes');
is(name_of('z1'), 'V2/V2', 'is as it was left');
quiet('a row that goes before');
on_till('ALTER DATABASE postgres RESET possync.batch_entries');

# A pull with a row of its own in quarantine keeps what a push has there
on_master('ALTER TABLE customer ADD CONSTRAINT picky CHECK (name <> $$bad$$)');
on_till('ALTER TABLE customer ADD CONSTRAINT picky CHECK (name <> $$worse$$)');
rename_to('c5', 'bad');
push_sales($till);
on_master("UPDATE customer SET name = 'worse' WHERE code = 'c1'");
pull() for 1, 2;
like(held(), qr/^error push .*, error pull .* 1$/, 'both wait');
on_master('ALTER TABLE customer DROP CONSTRAINT picky');
on_master("UPDATE customer SET name = 'better' WHERE code = 'c1'");
is(pull(), 'ok', 'what the pull had is solved');
like(held(), qr/^error push .* 1$/, 'what the push had is still there');
on_till('UPDATE synchronize_quarantine SET retry_at = now()');
is(push_sales($till), 'ok', 'and tried again');
is(name_of('c5') . ' ' . name_of('c1'), 'bad/bad better/better', 'with success');
quiet('both');

# Decided without a pull, by somebody who writes dates in his own way
policy('ask');
on_master("UPDATE customer SET name = 'F' WHERE code = 'c4'");
rename_to('c4', 'G');
push_sales($till);
on_till(q(SELECT possync_resolve(id, 'local') FROM possync_quarantine));
is(push_sales($till), 'ok', 'a table with a column called remote');
is(name_of('c4'), 'G/G', 'is none of its conflicts');
quiet('called remote');
on_master("UPDATE customer SET name = 'M', at = '2020-03-02 00:00:00Z' WHERE code = 'c6'");
rename_to('c6', 'T');
on_till("SET datestyle = 'SQL, DMY'; SELECT * FROM possync_pull('customer')");
on_till(q(SELECT possync_resolve(id, 'local') FROM possync_quarantine WHERE direction = 'push'));
is(push_sales($till), 'ok', 'images are the same in every session');
is(name_of('c6'), 'T/T', 'so what was decided holds');
pull();
quiet('dates');

# An entry that somebody deletes holds nothing any more
on_master('ALTER TABLE customer ADD CONSTRAINT picky CHECK (name <> $$ugly$$)');
rename_to('c2', 'ugly');
push_sales($till);
like(held(), qr/^error push .* 1$/, 'a transaction waits');
on_master('ALTER TABLE customer DROP CONSTRAINT picky');
on_till('DELETE FROM synchronize_quarantine');
is(push_sales($till), 'ok', 'its entry is deleted by hand');
is(name_of('c2'), 'ugly/ugly', 'and it is pushed');
quiet('deleted by hand');

# A column is renamed here while a change waits: nobody can tell what the remote had
policy('remote_wins');
pull();
rename_to('c3', 'before');
on_till('ALTER TABLE customer RENAME remote TO faraway; SELECT possync_set_field($$customer$$, $$faraway$$, remote => $$remote$$) FROM possync_add_model($$customer$$, server => $$hq$$) LIMIT 1');
rename_to('c3', 'after');
is(pull(), 'ok', 'a pull after a column was renamed');
like(name_of('c3'), qr{/after$}, 'takes nothing away');
like(push_sales($till) . held(), qr/error push the row was queued with a column "remote", which table "customer" does not have any more/, 'a push says what is wrong');
like(name_of('c3'), qr{/after$}, 'and loses nothing');
on_till('ALTER TABLE customer RENAME faraway TO remote; SELECT possync_set_field($$customer$$, $$remote$$, remote => $$remote$$) FROM possync_add_model($$customer$$, server => $$hq$$) LIMIT 1');
on_till('UPDATE synchronize_quarantine SET retry_at = now()');
push_sales($till);
like(held(), qr/faraway/, 'with its name back the first goes, the second has the other name');

done_testing();
