# Random histories: writers at the master insert, update and delete in transactions
# that are long or short, prepared, aborted or with parts rolled back, while tills
# pull, lose their connections and crash.
#
# Amounts only move between the rows of three tables, so in every snapshot their sum
# is the same: a till that has another one after a pull has seen no snapshot.  One
# table has a change log, one a change column, one nothing.  In the end every till
# has what the master has.
#
# POSSYNC_SEED replays one seed, as far as time lets it; POSSYNC_SECONDS tells how long
# it goes on.

use strict;
use warnings FATAL => 'all';

use Possync;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed = $ENV{POSSYNC_SEED} // 20261124;
my $seconds = $ENV{POSSYNC_SECONDS} // 15;
my @tables = qw(logged stamped bare);

my $master = Possync->cluster('master', 'max_prepared_transactions = 20');
my $proxy = Possync::Proxy->new($master->port);
my @tills = map { Possync->cluster("till$_", 'restart_after_crash = on') } 1 .. 2;

for my $node ($master, @tills)
{
	$node->safe_psql('postgres', <<'EOC');
CREATE TABLE logged (id serial PRIMARY KEY, code uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(), amount integer NOT NULL, note text);
CREATE TABLE stamped (id serial PRIMARY KEY, code uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(), amount integer NOT NULL,
	logged integer REFERENCES logged ON DELETE CASCADE, changed timestamptz NOT NULL DEFAULT now());
CREATE TABLE bare (id serial PRIMARY KEY, code uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(), amount integer NOT NULL,
	stamped integer REFERENCES stamped ON DELETE SET NULL, twin integer REFERENCES bare ON DELETE SET NULL);
CREATE INDEX ON stamped (changed);
CREATE INDEX ON stamped (logged);
CREATE INDEX ON bare (stamped);
CREATE INDEX ON bare (twin);
EOC
}
$master->safe_psql('postgres', <<'EOC');
GRANT pg_read_all_stats TO clerk;
CREATE EXTENSION possync;
SELECT possync_log('logged');
INSERT INTO logged (amount) SELECT 10 FROM generate_series(1, 300);
INSERT INTO stamped (amount, logged) SELECT 10, CASE WHEN i % 3 = 0 THEN i END FROM generate_series(1, 300) i;
INSERT INTO bare (amount, stamped, twin) SELECT 10, CASE WHEN i % 2 = 0 THEN 1 + i % 300 END, nullif(i / 5, 0) FROM generate_series(1, 1500) i;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.changed := now(); RETURN NEW; END$$;
CREATE TRIGGER touch BEFORE UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION touch();
ANALYZE;

-- One move: what is taken from one row is put somewhere else, which may be a new row;
-- a row that is deleted gives all it has, and so do those that go with it.
CREATE FUNCTION move() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	tables text[] := '{logged,stamped,bare}';
	source text := tables[1 + floor(random() * 3)];
	target text := tables[1 + floor(random() * 3)];
	taken integer;
	one integer;
	two integer;
	with_it integer;
	kind double precision := random();
BEGIN
	EXECUTE format('SELECT id FROM %I ORDER BY random() LIMIT 1', source) INTO one;
	IF kind < 0.25 THEN
		-- nobody can refer to it any more
		EXECUTE format('SELECT 1 FROM %I WHERE id = $1 FOR UPDATE', source) INTO two USING one;
		IF source = 'logged' THEN
			WITH gone AS (DELETE FROM stamped s WHERE s.logged = one RETURNING amount) SELECT sum(amount) INTO with_it FROM gone;
		END IF;
		EXECUTE format('WITH gone AS (DELETE FROM %I WHERE id = $1 RETURNING amount) SELECT sum(amount) FROM gone', source) INTO taken USING one;
		taken := CASE WHEN taken IS NULL THEN with_it ELSE taken + coalesce(with_it, 0) END;
	ELSE
		EXECUTE format('WITH less AS (UPDATE %I SET amount = amount - 3 WHERE id = $1 RETURNING 3) SELECT sum(3) FROM less', source) INTO taken USING one;
	END IF;
	IF taken IS NULL THEN
		RETURN;
	END IF;
	IF kind < 0.1 OR kind > 0.8 THEN
		EXECUTE format('SELECT id FROM %I ORDER BY random() LIMIT 1', target) INTO two;
		EXECUTE format('UPDATE %I SET amount = amount + $2 WHERE id = $1', target) USING two, taken;
		GET DIAGNOSTICS one = ROW_COUNT;
		IF one = 1 THEN
			RETURN;
		END IF;
	END IF;
	IF target = 'stamped' THEN
		INSERT INTO stamped (amount, logged) SELECT taken, (SELECT id FROM logged ORDER BY random() LIMIT 1 FOR KEY SHARE);
	ELSIF target = 'bare' THEN
		INSERT INTO bare (amount, stamped, twin) SELECT taken, (SELECT id FROM stamped ORDER BY random() LIMIT 1 FOR KEY SHARE),
			(SELECT id FROM bare ORDER BY random() LIMIT 1 FOR KEY SHARE);
	ELSE
		INSERT INTO logged (amount) VALUES (taken);
	END IF;
END $$;
EOC
my $sum = 'SELECT (SELECT sum(amount) FROM logged) + (SELECT sum(amount) FROM stamped) + (SELECT sum(amount) FROM bare)';
my $content = <<'EOC';
SELECT 'l', code, amount, NULL::uuid, NULL::uuid FROM logged
UNION ALL SELECT 's', s.code, s.amount, l.code, NULL FROM stamped s LEFT JOIN logged l ON l.id = s.logged
UNION ALL SELECT 'b', b.code, b.amount, s.code, t.code FROM bare b LEFT JOIN stamped s ON s.id = b.stamped LEFT JOIN bare t ON t.id = b.twin
ORDER BY 1, 2
EOC
my $total = $master->safe_psql('postgres', $sum);

for my $i (0, 1)
{
	connect_till($tills[$i], $i == 0 ? $proxy->port : $master->port);
	$tills[$i]->safe_psql('postgres', "ALTER SEQUENCE ${_}_id_seq RESTART " . 100000 * ($i + 1)) for @tables;
	$tills[$i]->safe_psql('postgres', <<'EOC');
SELECT * FROM possync_add_model('bare', server => 'hq');
SELECT possync_set_model(name, on_delete => 'delete') FROM synchronize_model;
SELECT possync_set_model('stamped', change_columns => '{changed}');
ALTER DATABASE postgres SET possync.compare_interval = 0;
ALTER DATABASE postgres SET possync.delete_limit = 100;
EOC
}

note("seed $seed");
srand $seed;
my @writers = map { Possync::Session->new($master) } 1 .. 4;
my @sessions = map { Possync::Session->new($_) } @tills;
my @busy = map { 0 } @writers;      # moves left in the writer's transaction
my (%did, @wrong, @prepared);

sub write_something
{
	my ($i) = @_;
	my $writer = $writers[$i];
	my $kind = rand;

	return unless $writer->is_done;
	if ($busy[$i] == 0)
	{
		my $level = rand() < 0.3 ? 'REPEATABLE READ' : 'READ COMMITTED';
		$writer->start_sql("BEGIN ISOLATION LEVEL $level; SET LOCAL lock_timeout = '1s'; SELECT move()");
		$busy[$i] = 1 + int(rand(3) ** 3);
	}
	elsif (--$busy[$i] > 0)
	{
		$writer->start_sql($kind < 0.2
			? 'SAVEPOINT s; SELECT move(); ROLLBACK TO s'
			: $kind < 0.3 ? 'SAVEPOINT s; SELECT move(); RELEASE s' : 'SELECT move()');
	}
	elsif ($kind < 0.15) { $writer->start_sql('ROLLBACK'); $did{'rolled back'}++ }
	elsif ($kind < 0.3 && @prepared < 8)
	{
		my $name = 'p' . ++$did{prepared};
		$writer->start_sql("PREPARE TRANSACTION '$name'; ROLLBACK");
		push @prepared, $name;
	}
	else { $writer->start_sql('COMMIT'); $did{committed}++ }
	return;
}

sub finish_prepared
{
	my ($name) = @_;
	my $word = rand() < 0.8 ? 'COMMIT' : 'ROLLBACK';
	$master->psql('postgres', "SET lock_timeout = '1s'; $word PREPARED '$name'");
	return;
}

sub session
{
	my ($node) = @_;
	for (1 .. 200)
	{
		my $session = eval { Possync::Session->new($node) };
		return $session if $session;
		usleep(50_000);
	}
	die $node->name . ' does not come back';
}

sub pull
{
	my ($i) = @_;
	my $kind = rand;
	my $session = $sessions[$i];

	$proxy->cut_after(int rand 60_000) if $i == 0 && $kind < 0.3;
	$session->start_sql("BEGIN; SELECT status, coalesce(error, '') FROM possync_pull('bare'); $sum; COMMIT");
	if ($kind > 0.94)
	{
		usleep(rand 60_000);
		kill 'KILL', $session->pid;
		$did{crashed}++;
	}
	my ($out, $err) = $session->answer(120);
	$proxy->pass if $i == 0;
	if ($out =~ /^ok\|\n(-?\d+)$/)
	{
		$did{pulled}++;
		push @wrong, "till$i: $1 instead of $total" if $1 != $total;
	}
	elsif ($out =~ /^failed\|/) { $did{failed}++ }
	elsif ($err =~ /connection|terminat|crash/) { $did{'died'}++ }
	else { push @wrong, "till$i: $out $err" }
	if (!$session->{harness}->pumpable || $err =~ /connection to server/)
	{
		$sessions[$i] = session($tills[$i]);
	}
	return;
}

my $end = time + $seconds;
while (time < $end)
{
	write_something($_) for 0 .. $#writers;
	finish_prepared(splice @prepared, int rand @prepared, 1) if @prepared && rand() < 0.05;
	pull(int rand 2) if rand() < 0.15;
	usleep(2_000);
}
for (@writers) { $_->answer(60) unless $_->is_done; $_->run('ROLLBACK') }
$master->safe_psql('postgres', "SELECT 1");
finish_prepared($_) for split /\n/, $master->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts');
is($master->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), 0, 'no transaction is left');

note(join ', ', map { "$_ $did{$_}" } sort keys %did);
is(join("\n", @wrong[ 0 .. ($#wrong > 4 ? 4 : $#wrong) ]), '', "every pull saw a snapshot, seed $seed");
cmp_ok($did{pulled}, '>', 20, 'there were pulls');
is($master->safe_psql('postgres', $sum), $total, 'the master kept the sum');
for my $i (0, 1)
{
	$sessions[$i] = session($tills[$i]);
	is(($sessions[$i]->run("SELECT status FROM possync_pull('bare')"))[0], 'ok', "till$i: the last pull");
	is_same($master, $tills[$i], $content, "till$i has what the master has");
	is(($sessions[$i]->run("SELECT count(*) FROM possync_compare('bare')"))[0], 0, "till$i: possync_compare finds nothing");
	is($tills[$i]->safe_psql('postgres', 'SELECT count(*) FROM synchronize_quarantine'), 0, "till$i: nothing was left out");
}

done_testing();
