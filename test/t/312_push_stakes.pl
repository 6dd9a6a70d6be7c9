# Ways in which a master can take a sale without having it, and in which tills
# can make twice what should be once.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;

my $master = Possync->cluster('master');
my @tills;
sales_master($master);
for my $n (1, 2)
{
	push @tills, Possync->cluster("till$n");
	sales_till($tills[-1], $master->port, first_key => $n * 100);
}
my $till = $tills[0];

sub on_master { return $master->safe_psql('postgres', $_[0]); }
sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub sell { on_till("SELECT sell('$_', NULL, 1)") for @_; return; }
sub there { return on_master('SELECT string_agg(number, $$ $$ ORDER BY number) FROM sale'); }
sub held { return on_till('SELECT string_agg(concat_ws($$: $$, reason, sqlstate, message), chr(10) ORDER BY id) FROM possync_quarantine'); }

# A sequence that has fallen behind the rows
on_master('INSERT INTO sale (id, number) SELECT last_value + i, $$master$$ FROM sale_id_seq, generate_series(1, 3) i');
sell('s1', 's2');
like(push_sales($till), qr/failed: keys that remote table public\.sale made are those of rows there already/, 'a sequence that is behind');
like(push_sales($till), qr/failed: keys that remote table/, 'still');
is(held() . on_till('SELECT count(DISTINCT txid) FROM synchronize_queue'), '2', 'holds back sales, and puts none into quarantine');
is(push_sales($till), 'ok', 'until it has caught up');
is(there(), 'master master master s1 s2', 'and nothing is lost');
on_master('DELETE FROM sale WHERE number = $$master$$');

# Somebody takes the key between its making and its use
on_master(<<'EOC');
CREATE FUNCTION snatch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	IF pg_trigger_depth() = 1 THEN
		INSERT INTO sale (id, number) SELECT last_value, 'snatched' FROM sale_id_seq;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER snatch BEFORE INSERT ON sale FOR EACH STATEMENT EXECUTE FUNCTION snatch();
EOC
sell('s3');
is(push_sales($till), 'ok', 'a key that is taken');
like(held(), qr/^error: 23505: duplicate key value violates unique constraint "sale_pkey"$/, 'is no sale that arrived');
on_master('DROP TRIGGER snatch ON sale');
is(on_till('SELECT count(*) FROM synchronize_batch') . on_till('SELECT count(*) FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model WHERE m.name = $$sale$$'), '02', 'and its key is forgotten');
push_sales($till);
isnt(held(), '', 'it waits for its time');
on_till('UPDATE synchronize_quarantine SET retry_at = now()');
is(push_sales($till), 'ok', 'then it is tried again by itself');
is(there() . held(), 's1 s2 s3', 'and arrives');

# A trigger that drops rows
on_master(<<'EOC');
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN NEW.position <> 2 THEN NEW END; END $$;
CREATE TRIGGER swallow BEFORE INSERT ON sale_line FOR EACH ROW EXECUTE FUNCTION swallow();
EOC
on_till("SELECT sell('one line', NULL, 1)");
on_till("SELECT sell('two lines', NULL, 2)");
is(push_sales($till), 'ok', 'lines that a trigger drops');
like(held(), qr/^error: 22000: remote table public\.sale_line: 1 of 2 rows were taken, the others were dropped by a trigger or a rule$/, 'are told');
is(there(), 'one line s1 s2 s3', 'their sale is not halved, others are there');
sell('again');
on_till("UPDATE sale SET number = 'two' WHERE number = 'two lines'");
on_till('UPDATE synchronize_quarantine SET retry_at = now()');
push_sales($till);
is(on_till('SELECT string_agg(reason || attempts, $$ $$ ORDER BY id) FROM possync_quarantine'), 'error2 dependency2', 'it is tried again, later and later, and what depends on it waits');
on_till('UPDATE synchronize_quarantine SET retry_at = $$infinity$$ WHERE reason = $$dependency$$');
on_till('UPDATE synchronize_quarantine SET retry_at = now() WHERE reason = $$error$$');
on_master('DROP TRIGGER swallow ON sale_line');
is(push_sales($till), 'ok', 'once the trigger is gone');
is(there() . held(), 'again one line s1 s2 s3 two', 'all follows, in order');
is_same($till, $master, $sales, 'and is the same');

# Discarded while it is between two attempts
on_master('ALTER TABLE sale ADD CONSTRAINT refused CHECK (number <> $$bad$$)');
sell('bad');
push_sales($till);
on_till('DELETE FROM synchronize_held');
on_till('SELECT possync_discard(id, $$bad$$) FROM possync_quarantine');
is(push_sales($till) . there(), 'okagain one line s1 s2 s3 two', 'what was discarded is not tried any more');

# A new customer, where nothing at the master says that there is one already
on_master('ALTER TABLE customer DROP CONSTRAINT customer_code_key');
$_->safe_psql('postgres', 'SELECT possync_queue($$customer$$)') for @tills;
on_master('INSERT INTO customer (code, name) VALUES ($$there$$, $$of the master$$)');
on_till('INSERT INTO customer (code, name) VALUES ($$there$$, $$of the till$$)');
is(push_sales($till), 'ok', 'a new customer');
is(on_master('SELECT string_agg(name, $$ $$) FROM customer WHERE code = $$there$$'), 'of the till', 'is looked for without a constraint');

my $rival = Possync::Session->new($master);
$rival->run("BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('possync', 'customer'::regclass::oid::int8)); INSERT INTO customer (code, name) VALUES ('raced', 'rival')");
on_till("SELECT sell('raced', 'raced', 1)");
my $pushing = Possync::Session->new($till);
$pushing->start_sql("SELECT status FROM possync_push('sale')");
$master->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)") or die 'nobody waits';
$rival->run('COMMIT');
is(($pushing->answer)[0], 'ok', 'a customer that another till makes at the same moment');
is(on_master('SELECT count(*) FROM customer WHERE code = $$raced$$'), '1', 'is made once');
is(on_master('SELECT c.code FROM sale s JOIN customer c ON c.id = s.customer WHERE s.number = $$raced$$'), 'raced', 'and its sale refers to it');

# Two tills, the same customers
my @pushing;
for my $t (@tills)
{
	my $order = $t == $till ? 'ASC' : 'DESC';
	$t->safe_psql('postgres', "SELECT sell(concat('both', i, ' of ', pg_backend_pid()), 'both' || i % 20, 1) FROM generate_series(1, 40) i ORDER BY i $order");
	push @pushing, Possync::Session->new($t);
}
$_->start_sql("SELECT status FROM possync_push('sale')") for @pushing;
is(join(' ', map { ($_->answer)[0] } @pushing), 'ok ok', 'two tills push the same customers at once');
is(on_master('SELECT count(*), count(DISTINCT code) FROM customer WHERE code LIKE $$both%$$'), '20|20', 'every one is made once');
is(on_master("SELECT count(*) FROM sale WHERE number LIKE 'both%'"), '80', 'every sale is there');

# Of what does not fit, only that stops which needs it
on_master('ALTER TABLE product RENAME price TO amount');
sell('needs no product anew');
is(push_sales($till), 'ok', 'a product that the master has changed');
like(there(), qr/needs no product anew/, 'stops no sale of products that are known');
on_till('INSERT INTO product (sku, price) VALUES ($$new$$, 1); INSERT INTO sale_line (sale, position, product, quantity, price) SELECT max(id), 9, currval($$product_id_seq$$), 1, 1 FROM sale');
like(push_sales($till), qr/^failed: .* do not fit together/, 'but those of new ones');
on_master('ALTER TABLE product RENAME amount TO price');
is(push_sales($till), 'ok', 'until it fits again');
is(on_master('SELECT count(*) FROM product WHERE sku = $$new$$'), '1', 'and the product is there');

# Which operations
on_till('SELECT possync_queue($$sale$$, operations => $${insert,update}$$)');
on_till('DELETE FROM sale WHERE number = $$s1$$');
is(on_till('SELECT count(*) FROM synchronize_queue'), '0', 'deletes are not queued');
on_till('INSERT INTO sale (id, number) OVERRIDING SYSTEM VALUE SELECT t.local_key, $$s1 anew$$ FROM synchronize_translation t JOIN synchronize_model m ON m.id = t.model WHERE m.name = $$sale$$ ORDER BY t.local_key LIMIT 1');
is(push_sales($till), 'ok', 'a row that is made anew under its key');
like(there(), qr/s1 anew/, 'is the same row at the master');
on_till('UPDATE sale SET id = id + 5000 WHERE number = $$s1 anew$$');
is(on_till('SELECT string_agg(operation::text, $$$$) FROM synchronize_queue'), 'i', 'of another key, too, what is asked for');
push_sales($till);
for my $operations ('NULL', "'{}'", "'{insert,truncate}'")
{
	my ($status, $out, $err) = $till->psql('postgres', "SELECT possync_queue('sale', $operations)");
	like($err, qr/invalid value for operations/, "no operations: $operations");
}
on_till('SELECT possync_queue($$sale$$, $${delete}$$)');
on_till('INSERT INTO sale (number) VALUES ($$unseen$$)');
is(on_till('SELECT count(*) FROM synchronize_queue'), '0', 'they can be changed');
on_till('SELECT possync_queue($$sale$$)');

# A model that is ignored
on_till('SELECT possync_set_model($$payment$$, on_unknown => $$ignore$$)');
sell('no payments');
is(push_sales($till), 'ok', 'a model that is ignored');
is(on_master('SELECT count(*) FROM payment p JOIN sale s ON s.id = p.sale WHERE s.number = $$no payments$$'), '0', 'is not sent');
is(on_till('SELECT count(*) FROM synchronize_queue'), '0', 'nor kept');

# The answer is lost, the transaction is refused when it is sent again, and discarded:
# what it had made may be there
on_till('SELECT possync_set_model($$customer$$, on_unknown => $$create$$)');
on_till("SELECT sell('lost', 'given up', 1)");
on_till("ALTER DATABASE postgres SET possync.fault = 'exit: push written'");
push_sales($till);
on_till('ALTER DATABASE postgres RESET possync.fault');
on_master('ALTER TABLE sale ADD CONSTRAINT never CHECK (number <> $$lost$$) NOT VALID');
is(push_sales($till), 'ok', 'a sale that arrived unknown to us, and is refused');
on_till('SELECT possync_discard(id, $$never mind$$) FROM possync_quarantine WHERE message LIKE $$%never%$$');
on_master('ALTER TABLE sale DROP CONSTRAINT never');
push_sales($till) for 1, 2;
is(on_till('SELECT string_agg(given_up::text, $$,$$) FROM synchronize_batch'), 'true', 'once it is discarded, its keys stay unsure');
on_till("SELECT sell('later', 'given up', 1)");
is(push_sales($till), 'ok', 'who refers to a row of it');
is(on_master('SELECT count(*) FROM customer WHERE code = $$given up$$'), '1', 'does not make that a second time');
on_till('DELETE FROM sale WHERE number = $$lost$$');
is(push_sales($till), 'ok', 'the sale itself is deleted');
is(there() =~ /lost/ || on_till('SELECT count(*) FROM synchronize_batch'), '0', 'there, too, and no key is unsure any more');

done_testing();
