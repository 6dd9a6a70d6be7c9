# A master at which no transaction ends is asked for no more than its snapshot.
# Whatever happens there then is found by the next pull, and what does not need a
# transaction to change is asked for every time.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'sleep';

my $master = Possync->cluster('master', "wal_level = replica\nmax_wal_senders = 3\nmax_prepared_transactions = 5\nautovacuum = off\nlog_statement = all");
my $till = Possync->cluster('till');
connect_till($till, $master->port);

sub there { return $master->safe_psql('postgres', $_[0]) }
sub here { return $till->safe_psql('postgres', $_[0]) }

there('CREATE EXTENSION possync; CREATE ROLE reader LOGIN PASSWORD $$secret$$; GRANT pg_read_all_stats TO reader; CREATE TABLE other (n integer)');
for my $node ($master, $till)
{
	$node->safe_psql('postgres', "CREATE TABLE $_ (id serial PRIMARY KEY, code text UNIQUE NOT NULL, changed timestamptz DEFAULT clock_timestamp())")
	  for qw(plain logged dated policed);
	$node->safe_psql('postgres', "CREATE TABLE bare (id serial PRIMARY KEY, code text UNIQUE NOT NULL)");
}
there("CREATE INDEX ON $_ (changed); INSERT INTO $_ (code) SELECT 'r' || i FROM generate_series(1, 2000) i; ANALYZE $_; GRANT SELECT ON $_ TO reader") for qw(plain logged dated policed);
there(<<'EOC');
SELECT possync_log('logged');
CREATE VIEW now_dated AS SELECT * FROM dated WHERE changed <= clock_timestamp();
ALTER TABLE policed ENABLE ROW LEVEL SECURITY;
CREATE POLICY now ON policed FOR SELECT USING (changed <= clock_timestamp());
GRANT SELECT ON now_dated TO reader;
EOC
my %models = (plain => 'public.plain', logged => 'public.logged', dated => 'public.now_dated', policed => 'public.policed');
here("SELECT * FROM possync_add_model('$_', server => 'hq', remote => '$models{$_}')") for sort keys %models;
here("SELECT possync_set_model('dated', change_columns => '{changed}')");
here("ALTER USER MAPPING FOR CURRENT_USER SERVER hq OPTIONS (SET user 'reader')");

my $session = Possync::Session->new($till);
sub pull { return ($session->run("SELECT concat_ws('|', status, rows_read, error) FROM possync_pull('$_[0]')"))[0] }

# Polls sent to the master by so many pulls: those of tables, and of the snapshot alone
sub polls
{
	my ($model, $n) = @_;
	my $offset = -s $master->logfile;
	pull($model) for 1 .. $n;
	my @polls = grep { /execute possync_/ } split /\n/, slurp_file($master->logfile, $offset);
	my $tables = grep { /ORDER BY|possync_changes/ } @polls;
	return "$tables " . (@polls - $tables);
}

is(pull($_), 'ok|2000', "$_: all is here") for sort keys %models;
sleep 1;
for my $model (sort keys %models) { pull($model) for 1 .. 3 }
for my $model (qw(plain logged))
{
	polls($model, 4);
	is(polls($model, 5), '0 5', "$model: only the snapshot is asked for");
	there('INSERT INTO other VALUES (1)');
	is(polls($model, 1), '1 1', "$model: where anything happened, the tables after it");
	there('INSERT INTO other VALUES (1)');
	is(polls($model, 1), '1 0', "$model: from then on at once");
	is(polls($model, 4), '2 2', "$model: until it is quiet");
}
for my $model (qw(dated policed))
{
	polls($model, 4);
	is(polls($model, 5), '5 0', "$model: tells of more than transactions do");
	there("INSERT INTO dated (code, changed) VALUES ('later', clock_timestamp() + interval '2 s'); INSERT INTO policed (code, changed) SELECT 'later', max(changed) FROM dated") if $model eq 'dated';
	pull($model) for 1 .. 5;
}
sleep 3;
is(here("SELECT count(*) FROM $_ WHERE code = 'later'"), '0', "$_: hidden") for qw(dated policed);
is(pull($_), 'ok|1', "$_: shown by the clock alone") for qw(dated policed);

# Whatever a transaction does, and however long it waited
my $writer = Possync::Session->new($master);
my $number = 0;
for my $model (qw(plain logged))
{
	my $insert = sub { $number++; return "INSERT INTO $model (code) VALUES ('new $number')" };
	my $found = sub { is(pull($model), 'ok|1', "$model: $_[0]"); pull($model) for 1 .. 6 };
	my $waits = sub {
		sleep 0.4;	# positions come to rest a moment after the last change
		pull($model) for 1 .. 6;
		is(polls($model, 2), '0 2', "$model: $_[0]: quiet meanwhile");
	};
	pull($model) for 1 .. 6;
	there($insert->());
	$found->('an insert');
	$writer->run('BEGIN');
	$writer->run($insert->());
	$waits->('a long transaction');
	$writer->run('COMMIT');
	$found->('a long transaction');
	$writer->run('BEGIN');
	$writer->run('SAVEPOINT one');
	$writer->run($insert->());
	$writer->run('RELEASE one');
	$waits->('a subtransaction');
	$writer->run('COMMIT');
	$found->('a subtransaction');
	$writer->run('BEGIN');
	$writer->run($insert->());
	$writer->run("PREPARE TRANSACTION 'one'");
	$waits->('a prepared transaction');
	$writer->run("COMMIT PREPARED 'one'");
	$found->('a prepared transaction');

	# one that began later ends earlier, so that the snapshot's bounds stay
	$writer->run('BEGIN');
	$writer->run('INSERT INTO other VALUES (1)');
	my $second = Possync::Session->new($master);
	$second->run('BEGIN');
	$second->run($insert->());
	there('INSERT INTO other VALUES (1)');
	$waits->('one of two transactions');
	$second->run('COMMIT');
	$second->quit;
	$found->('one of two transactions');
	$writer->run('ROLLBACK');
}

# Rights that are taken away
pull('plain') for 1 .. 6;
there('REVOKE SELECT ON plain FROM reader');
like(pull('plain'), qr/^failed\|.*plain/, 'what may not be read any more is an error');
there('GRANT SELECT ON plain TO reader');
is(pull('plain'), 'ok|0', 'and can be read again');
$writer->quit;
$session->quit;

# A standby's snapshot does not tell what its primary runs
$master->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($master, 'backup', has_streaming => 1);
$standby->start;
$master->wait_for_catchup('standby');
here("ALTER SERVER hq OPTIONS (SET port '" . $standby->port . "')");
$session = Possync::Session->new($till);
pull('plain') for 1 .. 2;
sleep 1;
pull('plain') for 1 .. 6;
my $offset = -s $standby->logfile;
is(pull('plain'), 'ok|0', 'a standby that has nothing new');
like(slurp_file($standby->logfile, $offset), qr/execute possync_[^\n]*ORDER BY/, 'is asked for the tables');
there("INSERT INTO plain (code) VALUES ('replicated')");
$master->wait_for_catchup('standby');
is(pull('plain'), 'ok|1', 'and for what it has');
$session->quit;
done_testing();
