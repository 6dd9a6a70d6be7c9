# A change is never sent before another one of the same row that was made before it,
# however transactions overlap with the batches of a push.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Sales;
use Test::More;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', "possync.batch_entries = 1\nmax_prepared_transactions = 2");

sub on_till { return $till->safe_psql('postgres', $_[0]); }
sub sell { on_till("INSERT INTO sale (number) VALUES ('$_')") for @_; return; }

# The master keeps each sale until its lock is let go.
sales_master($master);
sales_till($till, $master->port, first_key => 1);
$master->safe_psql('postgres', <<'EOC');
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(substr(NEW.number, 2)::integer);
	RETURN NEW;
END $$;
CREATE TRIGGER wait BEFORE INSERT ON sale FOR EACH ROW WHEN (NEW.number LIKE 's%') EXECUTE FUNCTION wait();
EOC
my @locks = map { Possync::Session->new($master) } 1 .. 6;
$locks[$_ - 1]->run("SELECT pg_advisory_lock($_)") for 1 .. 6;
sub waits_for
{
	my ($n) = @_;
	$master->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = $n AND NOT granted)") or die "sale $n is not on its way";
	# the next batch is ready, in a transaction that waits for this one
	$till->poll_query_until('postgres', q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'possync push%' AND backend_xid IS NOT NULL)}) or die 'nothing is prepared beside it';
	return;
}
sub let_go { $locks[$_[0] - 1]->run("SELECT pg_advisory_unlock($_[0])"); return; }

sell(map { "s$_" } 1 .. 6);
my $pushing = Possync::Session->new($till);
$pushing->start_sql("SELECT status FROM possync_push('sale')");
waits_for(1);

# It has its number and is not seen, and no transaction has ended that is newer
on_till("BEGIN; INSERT INTO sale (number, total) VALUES ('late', 1); PREPARE TRANSACTION 'late'");
let_go(1);
waits_for(2);
sell('between');
let_go($_), waits_for($_ + 1) for 2 .. 5;
on_till("COMMIT PREPARED 'late'");
on_till("UPDATE sale SET total = 2 WHERE number = 'late'");
let_go(6);
is(($pushing->answer)[0], 'ok', 'a push beside a transaction that takes its time to commit');
is_same($till, $master, 'SELECT number, total FROM sale ORDER BY number', 'leaves rows as they were left');

# Somebody lets a transaction go that is held, when a push has passed it and has not yet
# come to a later one of the same row
$_->run('SELECT pg_advisory_unlock_all()') for @locks;
$locks[$_ - 1]->run("SELECT pg_advisory_lock($_)") for 1 .. 3;
$master->safe_psql('postgres', 'DELETE FROM sale; ALTER TABLE sale ADD CONSTRAINT refused CHECK (number <> $$bad$$)');
on_till('DELETE FROM sale');
is(push_sales($till), 'ok', 'no sales');
sell('bad');
is(push_sales($till), 'ok', 'one that is refused');
sell(map { "s$_" } 1 .. 3);
$pushing->start_sql("SELECT status FROM possync_push('sale')");
waits_for(1);
on_till("DELETE FROM sale WHERE number = 'bad'");
let_go(1);
waits_for(2);
on_till('SELECT possync_retry(id) FROM possync_quarantine');
let_go($_) for 2, 3;
is(($pushing->answer)[0], 'ok', 'a push beside somebody who retries');
$master->safe_psql('postgres', 'ALTER TABLE sale DROP CONSTRAINT refused');
on_till('SELECT possync_retry(id) FROM possync_quarantine');
is(push_sales($till), 'ok', 'and another one');
is_same($till, $master, 'SELECT number, total FROM sale ORDER BY number', 'sends what was let go before what came later');

done_testing();
